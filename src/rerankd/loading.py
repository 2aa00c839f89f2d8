"""From options to a loaded model: first the plan, for which no weights are read, then the model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd.backends.select import Placement, limit_memory, place
from rerankd.core import ModelError
from rerankd.layers.shard import Shard
from rerankd.memory import trim_after_load
from rerankd.models.architecture import Architecture
from rerankd.models.base import Model
from rerankd.models.checkpoint.config import Config, read_config
from rerankd.models.checkpoint.gguf.tensors import GgufTensors
from rerankd.models.checkpoint.hub import resolve
from rerankd.models.checkpoint.quantized.source import open_tensors, read_scheme
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.recipes.choose import Choice, choose_recipe, with_label
from rerankd.models.recipes.evidence import Evidence
from rerankd.models.registry import find_architecture
from rerankd.options import LoadOptions, ModelInfo
from rerankd.prompts import LoadedPrompts, load_prompts
from rerankd.prompts.gguf import unfold
from rerankd.prompts.tokenizer import LoadedTokenizer, load_tokenizer

if TYPE_CHECKING:
    from rerankd.media.loader import MediaLoader

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is going to be loaded and scored.

    gguf: the file that holds the weights, where they are not in the folder
    name: of the architecture
    load_prompts: `prompts.load_prompts`, given everything but the chat template
    """

    options: LoadOptions
    placement: Placement
    folder: Path
    gguf: Path | None
    config: Config
    name: str
    architecture: Architecture
    choice: Choice
    load_prompts: Callable[..., LoadedPrompts]
    prompts: LoadedPrompts

    @property
    def precision(self) -> str:
        """In what the linear layers compute."""
        quantization = self.options.quantization
        return self.placement.dtype_name + (f", and quantised to {quantization}" if quantization else "")

    @property
    def storage(self) -> str | None:
        """How quantised weights are stored; None for weights that are not."""
        scheme = read_scheme(self.config)
        if self.gguf is not None:
            return f"GGUF; dequantised to {self.precision} as they are read"
        return None if scheme is None else f"{scheme.said}; dequantised to {self.precision} as they are read"

    def info(self) -> ModelInfo:
        """The description of the model for ready lines and answers."""
        recipe = self.choice.recipe
        return ModelInfo(
            model=self.options.model,
            path=self.gguf or self.folder,
            architecture=self.name,
            family=recipe.family,
            device=str(self.placement.device),
            dtype=self.placement.dtype_name,
            max_model_len=self.prompts.max_tokens,
            takes_instruction=self.prompts.takes_instruction,
            supports_vision=recipe.supports_vision,
            quantization=self.options.quantization,
            tensor_parallel_size=self.options.tensor_parallel_size,
        )

    def load(self) -> Model:
        """Read the weights, in as many processes as the options say. Raises ModelError for those that are missing or do
        not fit the configuration.

        The processes are this one's children; it leads them, see `LeadingModel`.
        """
        shard = self.placement.ranks.shard
        if shard.size == 1 or shard.rank > 0:
            return self.load_part()
        # Before processes are started that would all say it.
        self.placement.backend_for(self.architecture.spec(self.config))
        from rerankd.parallel.leader import Followers

        found = replace(self.options, model=str(self.gguf or self.folder), recipe=self.choice.recipe.name)
        followers = Followers(found, self.placement.ranks)
        try:
            return followers.lead(self.load_part(), self.placement.device)
        except BaseException:
            followers.close()
            raise

    def load_part(self) -> Model:
        """Read the weights of this process alone. See `load`."""
        placement = self.placement
        tensors = open_tensors(self.folder, self.config) if self.gguf is None else GgufTensors(self.gguf)
        if tensors.said:
            log.info("%s: they are dequantised to %s as they are read.", tensors.said, self.precision)
        weights = Weights(tensors, placement.device, placement.dtype, shard=placement.ranks.shard)
        model = self.architecture.load(self.config, weights, self.prompts.token_id, self.placement, self.choice.recipe)
        weights.finish()
        trim_after_load()
        return model

    def media_loader(self) -> MediaLoader | None:
        """The reader of images and videos; None for a model that reads text only."""
        if not self.choice.recipe.supports_vision:
            return None
        # Imported here, since it brings decoders that a text model has no use for.
        from rerankd.media.loader import MediaLoader
        from rerankd.media.visual import VisionFormat

        form = VisionFormat.from_folder(self.folder)
        vision = self.config.section("vision_config")
        for key, size, default in (
            ("patch_size", form.patch_size, 16),
            ("temporal_patch_size", form.temporal_patch_size, 2),
            ("spatial_merge_size", form.merge_size, 2),
        ):
            if vision.size(key, default) != size:
                raise vision.wrong(key, f"must be the image processor's own ({size})")
        return MediaLoader(
            form,
            sizing=self.options.media_sizing,
            limits=self.options.media_limits,
            access=self.options.media_access,
        )


def plan(options: LoadOptions, weights: bool = True, rank: int = 0) -> Plan:
    """Find the model, and how it is scored.

    weights: whether a model from a hub is fetched with them
    rank: of this process among `tensor_parallel_size`

    Raises ModelError where it cannot be found, read or scored."""
    if options.tensor_parallel_size < 1:
        raise ModelError(f"The tensor parallel size must be at least 1, not {options.tensor_parallel_size}.")
    shard = Shard(rank, options.tensor_parallel_size)
    placement = place(options.device, options.dtype, options.quantization, options.backend, shard)
    if options.gpu_memory_utilization is not None:
        limit_memory(placement.device, options.gpu_memory_utilization)
    if options.max_batch_tokens is not None and options.max_batch_tokens < 1:
        raise ModelError(f"The token budget of a batch must be at least 1, not {options.max_batch_tokens}.")
    found = resolve(options.model, options.hub, options.revision, weights)
    gguf = found if found.is_file() else None
    folder = found if gguf is None else unfold(gguf)
    config = read_config(folder, options.hf_overrides)
    name, architecture = find_architecture(config)
    tokenizer = cache(lambda: load_tokenizer(folder))
    evidence = Evidence(config, options.model, lambda: _appends(tokenizer()))
    choice = choose_recipe(name, architecture, evidence, options.recipe, options.chat_template is not None)
    if options.label is not None:
        choice = with_label(choice, config, options.label)
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
        tokenizer=tokenizer() if choice.recipe.answers else None,
    )
    return Plan(
        options=options,
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


def _appends(loaded: LoadedTokenizer) -> bool:
    """Whether a tokenizer puts tokens of its own around a text, as those of embedding models do."""
    return loaded.ids(["a"], special=True) != loaded.ids(["a"])
