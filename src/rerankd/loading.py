"""From options to a loaded model: first the plan, for which no weights are read, then the model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd.backends.select import Placement, limit_memory, place, replica_devices
from rerankd.core import Embeddings, Logits, ModelError, RerankRequest, Text
from rerankd.layers.shard import Shard
from rerankd.memory import trim_after_load
from rerankd.models.architecture import Architecture
from rerankd.models.base import Model
from rerankd.models.checkpoint.config import Config, read_config
from rerankd.models.checkpoint.gguf.tensors import GgufTensors
from rerankd.models.checkpoint.hub import resolve
from rerankd.models.checkpoint.quantized.source import open_tensors, read_scheme
from rerankd.models.checkpoint.tensors import Tensors
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.compression import LAYERS, RATIO
from rerankd.models.facts import HeadFacts
from rerankd.models.fallback import Fallback, find_fallback
from rerankd.models.labels import labels_activation, names_of
from rerankd.models.layerwise import CUTOFF
from rerankd.models.recipes.choose import Choice, choose_recipe, expect_layerwise, with_label
from rerankd.models.recipes.evidence import Evidence
from rerankd.models.recipes.known import RECIPES
from rerankd.models.registry import ARCHITECTURES, find_architecture
from rerankd.options import LoadOptions, ModelInfo
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.auto_tokenizer import auto_tokenizer
from rerankd.prompts.gguf import unfold
from rerankd.prompts.tokenizer import LoadedTokenizer, load_tokenizer
from rerankd.threads import MOST_THREADS, usable_cores, use_threads

if TYPE_CHECKING:
    from rerankd.media.loader import MediaLoader

log = logging.getLogger("rerankd")

WARM_UP = RerankRequest((Text("warm"),), ((Text("up"),), (Text("warm up"),)))
"""A pair that is scored before the first request, so that kernels are chosen and a broken model is found."""
IMPLEMENTATIONS = ("auto", "native", "transformers")
AUTOMATIC = "auto"
"""The value of `quantization` for the fastest one with a measured error."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of loading and scoring a model.

    devices: the device of each replica; the placement is on the first
    gguf: the GGUF file with the weights; None if they are in the folder
    name: the name of the architecture
    load_prompts: `prompts.load_prompts` with all arguments but the chat template
    """

    options: LoadOptions
    devices: tuple[str, ...]
    placement: Placement
    folder: Path
    gguf: Path | None
    config: Config
    name: str
    architecture: Architecture | Fallback
    choice: Choice
    load_prompts: Callable[..., LoadedPrompts]
    prompts: LoadedPrompts

    @property
    def precision(self) -> str:
        """The precision of the linear layers."""
        quantization = self.options.quantization
        return self.placement.dtype_name + (f", and quantised to {quantization}" if quantization else "")

    @property
    def device(self) -> str:
        """The device of the model, or the devices of its replicas with commas between them."""
        return ",".join(dict.fromkeys(self.devices)) if len(self.devices) > 1 else str(self.placement.device)

    @property
    def forks(self) -> bool:
        """Whether replicas are forked from one process, and so have the weights in the same memory."""
        return len(self.devices) > 1 and self.placement.device.type == "cpu" and sys.platform == "linux"

    @property
    def storage(self) -> str | None:
        """The format of quantised weights; None for other weights."""
        scheme = read_scheme(self.config)
        if self.gguf is not None:
            return f"GGUF; dequantised to {self.precision} as they are read"
        return None if scheme is None else f"{scheme.description}; dequantised to {self.precision} as they are read"

    def backend(self) -> tuple[str, list[str]]:
        """The backend that runs the model, and the reasons against those before it. ModelError if none does."""
        if isinstance(self.architecture, Fallback):
            return "transformers", []
        backend, reasons = self.placement.backend_for(self.architecture.spec(self.config))
        return backend.title, reasons

    def info(self) -> ModelInfo:
        """The description of the model for ready lines and answers."""
        recipe = self.choice.recipe
        return ModelInfo(
            model=self.options.model,
            path=self.gguf or self.folder,
            architecture=self.name,
            family=recipe.family,
            device=self.device,
            dtype=self.placement.dtype_name,
            backend=self.backend()[0],
            max_model_len=self.prompts.max_tokens,
            takes_instruction=self.prompts.takes_instruction,
            supports_vision=recipe.supports_vision,
            quantization=self.options.quantization,
            tensor_parallel_size=self.options.tensor_parallel_size,
            data_parallel_size=len(self.devices),
        )

    def loaded_info(self, head: HeadFacts) -> ModelInfo:
        """The description of a loaded model, with the outputs of its head."""
        if Embeddings in self.prompts.outputs:
            return replace(self.info(), dimensions=head.outputs)
        if Logits in self.prompts.outputs:
            activation = labels_activation(self.config, head.outputs, head.activation)
            return replace(self.info(), labels=names_of(self.config, head.outputs), labels_activation=activation)
        return self.info()

    @property
    def resolved_options(self) -> LoadOptions:
        """The options with the model's folder and recipe, for processes that need not look for them again.

        A recipe that is no model's own (of a chain of sentence-transformers, of a chat template) is found again.
        """
        recipe = self.choice.recipe.name
        recipe_option = recipe if recipe in RECIPES else self.options.recipe
        return replace(self.options, model=str(self.gguf or self.folder), recipe=recipe_option)

    def tensors(self) -> Tensors:
        """The source of the weights. Raises ModelError for files that are missing or damaged."""
        return open_tensors(self.folder, self.config) if self.gguf is None else GgufTensors(self.gguf)

    def weight_bytes(self) -> int:
        """The most memory that the loaded weights take, by the shapes in the files; of all replicas that have a copy of
        their own. Raises as `tensors`.

        Linear layers in 8 bits take less memory: the backend chooses which layers these are.
        """
        tensors, copies = self.tensors(), 1 if self.forks else len(self.devices)
        return copies * self.placement.dtype.itemsize * sum(prod(tensors.shape(name)) for name in tensors.names)

    def load(self) -> Model:
        """Read the weights, in as many processes as the options say. Raises ModelError for missing weights and for
        weights that do not fit the configuration.

        The processes are this one's children; it leads them, see `LeadingModel`.
        """
        shard = self.placement.ranks.shard
        if shard.size == 1 or shard.rank > 0:
            return self.load_part()
        # Before processes are started that would all say it.
        self.backend()
        from rerankd.parallel.leader import Followers

        followers = Followers(self.resolved_options, self.placement.ranks)
        try:
            return followers.lead(self.load_part(), self.placement.device)
        except BaseException:
            followers.close()
            raise

    def load_part(self) -> Model:
        """Read the weights of this process alone. See `load`."""
        placement, recipe = self.placement, self.choice.recipe
        if isinstance(self.architecture, Fallback):
            types = self.prompts.tokenizer.has_types
            return self.architecture.load(
                self.config, self.prompts.token_id, placement.device, placement.dtype, recipe, types
            )
        tensors = self.tensors()
        if tensors.description:
            log.info("%s: they are dequantised to %s as they are read.", tensors.description, self.precision)
        weights = Weights(tensors, placement.device, placement.dtype, shard=placement.ranks.shard)
        model = self.architecture.load(self.config, weights, self.prompts.token_id, placement, recipe)
        weights.finish()
        trim_after_load()
        return model

    def media_loader(self) -> MediaLoader | None:
        """The reader of images and videos; None for a model that reads text only."""
        if not self.choice.recipe.supports_vision:
            return None
        # Imported here, since it brings decoders that a text model has no use for.
        from rerankd.media.limits import BadMedia
        from rerankd.media.loader import MediaLoader

        assert isinstance(self.architecture, Architecture)
        assert self.architecture.images is not None, "an architecture that sees says how"
        try:
            sizing = self.choice.recipe.sizing.with_settings(self.options.media_sizing)
        except BadMedia as error:
            raise ModelError(f"The sizes of images and videos are not valid: {error}.") from error
        return MediaLoader(
            self.architecture.images(self.config),
            sizing=sizing,
            limits=self.options.media_limits,
            access=self.options.media_access,
        )


def plan(options: LoadOptions, weights: bool = True, rank: int = 0) -> Plan:
    """Find the model and its recipe.

    weights: whether a model from a hub is fetched with them
    rank: the rank of this process among `tensor_parallel_size`

    Raises ModelError if the model cannot be found, read or scored."""
    if options.tensor_parallel_size < 1:
        raise ModelError(f"The tensor parallel size must be at least 1, not {options.tensor_parallel_size}.")
    if options.num_threads is not None and not 1 <= options.num_threads <= MOST_THREADS:
        raise ModelError(
            f"The number of threads (--num-threads) must be from 1 to {MOST_THREADS}, not {options.num_threads}; leave "
            "it out for a thread for each core."
        )
    use_threads(options.num_threads)
    devices = replica_devices(options.device, options.data_parallel_size)
    if devices[0] == "cpu" and len(devices) > max(usable_cores(), 1):
        log.warning(
            "%d replicas (--data-parallel-size) share %g cores: each takes memory, and they compute no faster than one "
            "replica for each core.",
            len(devices),
            usable_cores(),
        )
    if len(devices) > 1 and options.tensor_parallel_size > 1:
        raise ModelError(
            "--tensor-parallel-size and --data-parallel-size cannot be combined; start a server for each part of the "
            "GPUs (CUDA_VISIBLE_DEVICES), and a load balancer before them."
        )
    shard = Shard(rank, options.tensor_parallel_size)
    automatic = options.quantization == AUTOMATIC
    placement = place(devices[0], options.dtype, None if automatic else options.quantization, options.backend, shard)
    if options.gpu_memory_utilization is not None and len(devices) == 1:  # else this process computes nothing
        limit_memory(placement.device, options.gpu_memory_utilization)
    if options.max_batch_tokens is not None and options.max_batch_tokens < 1:
        raise ModelError(f"The token budget of a batch must be at least 1, not {options.max_batch_tokens}.")
    path = resolve(options.model, options.hub, options.revision, weights)
    gguf = path if path.is_file() else None
    folder = path if gguf is None else unfold(gguf)
    cutoff = {} if options.cutoff_layers is None else {CUTOFF: options.cutoff_layers}
    config = read_config(folder, {**options.hf_overrides, **cutoff})
    if automatic:
        options = replace(options, quantization=None)
    name, architecture = _implementation(config, options, placement)
    if automatic:
        options = replace(options, quantization=_fast_quantization(architecture, config, placement))
        placement = place(devices[0], options.dtype, options.quantization, options.backend, shard)
    trusted, falls_back = options.trust_remote_code, isinstance(architecture, Fallback)
    tokenizer = cache(lambda: auto_tokenizer(folder, trusted) if falls_back else load_tokenizer(folder))
    evidence = Evidence(config, options.model, lambda: _appends(tokenizer()))
    choice = choose_recipe(name, architecture.recipes, evidence, options.recipe, options.chat_template is not None)
    if isinstance(architecture, Fallback) and options.recipe is None:
        architecture.expect_prompt(name, config)
    choice = with_label(choice, name, config, options.label)
    layerwise = [f"`{entry}`" for entry in (CUTOFF, RATIO, LAYERS) if entry in options.hf_overrides]
    expect_layerwise(choice, (["--cutoff-layers"] if cutoff else []) + layerwise)
    if isinstance(architecture, Architecture) and architecture.processed is not None:
        choice = replace(choice, recipe=architecture.processed(config, choice.recipe))
    say = log.info if choice.certain else log.warning
    say("%s is scored by the recipe %s: %s", options.model, choice.recipe.name, choice.why)
    prompts = partial(
        load_prompts,
        folder,
        recipe=choice.recipe,
        positions=architecture.positions(config),
        max_model_len=options.max_model_len,
        max_characters=options.max_characters,
        default_instruction=options.default_instruction,
        tokenizer=tokenizer() if choice.recipe.answers or falls_back else None,
        named=options.recipe is not None,
    )
    return Plan(
        options=options,
        devices=devices,
        placement=placement,
        folder=folder,
        gguf=gguf,
        config=config,
        name=name,
        architecture=architecture,
        choice=choice,
        load_prompts=prompts,
        prompts=prompts(chat_template=options.chat_template),
    )


def _fast_quantization(architecture: Architecture | Fallback, config: Config, placement: Placement) -> str | None:
    """The quantisation that `AUTOMATIC` stands for."""
    if isinstance(architecture, Fallback):
        return None
    backend, _ = placement.backend_for(architecture.spec(config))
    quantization = backend.fast_quantization
    log.info(
        "--quantization auto: %s by the backend %s", quantization or f"none, {placement.dtype_name}", backend.title
    )
    return quantization


def _implementation(config: Config, options: LoadOptions, placement: Placement) -> tuple[str, Architecture | Fallback]:
    """The name of the checkpoint's architecture, and its implementation: rerankd's own, or transformers'."""
    impl = options.model_impl
    if impl not in IMPLEMENTATIONS:
        raise ModelError(f"The implementation {impl!r} is unknown; choose {', '.join(IMPLEMENTATIONS)}.")
    if impl == "native" or (impl == "auto" and any(name in ARCHITECTURES for name in config.architectures)):
        if options.trust_remote_code:
            log.info("--trust-remote-code has no effect: rerankd's own implementation runs no code of a checkpoint.")
        return find_architecture(config)
    name, fallback = find_fallback(config, options.hf_overrides, options.trust_remote_code)
    for option, is_given in (
        (f"--quantization {options.quantization}", options.quantization is not None),
        (f"--backend {options.backend}", options.backend not in ("auto", "torch")),
        ("--tensor-parallel-size", options.tensor_parallel_size > 1),
    ):
        if is_given:
            raise ModelError(f"{option} is for rerankd's own implementations; {name} is run by transformers.")
    log.warning(
        "%s is run by transformers, in padded batches, since %s.",
        name,
        "--model-impl says so" if impl == "transformers" else "rerankd has no implementation of it",
    )
    return name, fallback


def _appends(loaded: LoadedTokenizer) -> bool:
    """Whether a tokenizer puts special tokens around a text, as the tokenizers of embedding models do."""
    return loaded.ids(["a"], special=True) != loaded.ids(["a"])
