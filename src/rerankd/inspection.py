"""How a model would be scored, found without reading its weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

from rerankd.core import RerankRequest, text_content
from rerankd.core.counts import counted, noun
from rerankd.loading import Plan
from rerankd.models.answers import has_classifier, read_answers
from rerankd.models.architecture import Architecture
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.files import PICKLED, SAFETENSORS
from rerankd.models.checkpoint.json_files import read_json
from rerankd.models.checkpoint.late_interaction import METADATA, read_late_interaction
from rerankd.models.checkpoint.modules import chain_of, embedding_modules, pooling_modes, read_modules
from rerankd.models.checkpoint.names import READ, WITHOUT_EFFECT
from rerankd.models.checkpoint.sentence_transformers import (
    MODULES,
    SETTINGS,
    TRANSFORMER,
    Kind,
    read_settings,
    settings_apply,
    transformer_settings,
)
from rerankd.models.compression import Compression
from rerankd.models.labels import declared_activation, read_labels

QUERY, DOCUMENT = "what is panda?", "The giant panda is a bear."
FILES = (
    *("config.json", "generation_config.json", "chat_template.jin*", "chat_template.json", "configuration.json"),
    *("quantize_config.json", "quant_config.json", "recipe.yaml", "hf_quant_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*"),
    *("merges.txt", "*.model", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *(
        "model*.safetensors",
        "pytorch_model*.bin",
        SAFETENSORS[1],
        PICKLED[1],
        MODULES,
        SETTINGS,
        METADATA,
        *TRANSFORMER,
    ),
    *("README*", "LICENSE*", "NOTICE*", "*.md", "*.png", "*.jpg", ".*"),
)
"""Files of a folder that are read, or have no effect on a score."""
SETTING_NAMES = {
    *("__version__", "model_type", "prompts", "default_prompt_name", "activation_fn", "similarity_fn_name"),
    *("truncate_dim", "requirements", "keep_in_fp32_modules"),
}
TRANSFORMER_NAMES = {
    *("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "processing_kwargs"),
    *("processor_kwargs", "tokenizer_args", "module_output_name", "method_output_name", "unpad_inputs"),
}


LATE_NAMES = {
    *("query_prefix", "document_prefix", "query_length", "document_length", "query_expansion", "do_query_expansion"),
    *("attend_to_expansion_tokens", "skiplist_words"),
}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts of how a model will be scored.

    why: the reason for the recipe, as a clause
    tokens: the ids of a decoder's answer tokens, by their strings; empty for other models
    template: the source of a decoder's template; None for an encoder
    prompts: the texts that the model reads for an example, with their special tokens
    max_tokens, positions: the most tokens of a prompt, and the number of the model's positions
    stored: the format of quantised weights, and their dequantisation; None for other weights
    backend: the backend, with the reasons against those before it
    other_files: the files and folders that are not read, which a score does not need
    not_understood: the settings of the folder that are not read or have no effect
    """

    model: str
    folder: str
    architecture: str
    recipe: str
    why: str
    head: str
    tokens: dict[str, int]
    activation: str
    template: str | None
    default_instruction: str | None
    prompts: tuple[str, ...]
    max_tokens: int
    positions: int
    device: str
    dtype: str
    quantization: str | None
    stored: str | None
    tensor_parallel_size: int
    data_parallel_size: int
    backend: str
    other_files: tuple[str, ...]
    not_understood: tuple[str, ...]


def inspect(plan: Plan) -> Inspection:
    """Inspect a plan. Raises the same ModelError as loading does before it reads weights."""
    head, tokens, activation = _head(plan)
    backend, reasons = plan.backend()
    return Inspection(
        model=plan.options.model,
        folder=str(plan.gguf or plan.folder),
        architecture=plan.name,
        recipe=plan.choice.recipe.name,
        why=plan.choice.why,
        head=head,
        tokens=tokens,
        activation=activation,
        template=_template(plan),
        default_instruction=plan.prompts.default_instruction,
        prompts=_example(plan),
        max_tokens=plan.prompts.max_tokens,
        positions=plan.architecture.positions(plan.config),
        device=plan.device,
        dtype=plan.placement.dtype_name,
        quantization=plan.options.quantization,
        stored=plan.storage,
        tensor_parallel_size=plan.options.tensor_parallel_size,
        data_parallel_size=len(plan.devices),
        backend="; ".join([backend, *reasons]),
        other_files=tuple(_other_files(plan)),
        not_understood=tuple(_not_understood(plan)),
    )


def _head(plan: Plan) -> tuple[str, dict[str, int], str]:
    """The head in words, the ids of its tokens, and its activation."""
    config, recipe, prompts = plan.config, plan.choice.recipe, plan.prompts
    if not recipe.pairs:
        return _comparison(plan), {}, "identity"
    if recipe.listwise is not None:
        marks = (recipe.listwise.document_mark, recipe.listwise.query_mark)
        description = (
            f"cosine of the vectors of {marks[0]!r} and {marks[1]!r}, of {recipe.listwise.documents} documents at most"
        )
        return f"{description} in one prompt", {name: prompts.token_id(name) for name in marks}, "identity"
    if recipe.layerwise and isinstance(plan.architecture, Architecture):
        layers = len(plan.architecture.spec(config).layers)
        description = f"a row of its own after {layers} of {config.layers()} layers"
        if recipe.compresses and (compression := Compression.of(config, layers)):
            description += f"; {compression}"
        return description, {}, declared_activation(config, 1, recipe.activation)
    if (score := recipe.score_token) is not None:
        name = prompts.tokenizer.tokenizer.id_to_token(score) or str(score)
        description = f"two linear layers at the token {name!r} behind the prompt, less {recipe.logit_bias:g}"
        return description, {name: score}, declared_activation(config, 1)
    modules = read_modules(plan.folder) or ()
    if chain_of(plan.folder) == "scores":
        labels = Config(read_json(modules[-1].folder / "config.json"), str(modules[-1].folder)).size("out_features")
        return f"modules {', '.join(module.kind for module in modules[1:])}", {}, declared_activation(config, labels)
    if not recipe.answers or has_classifier(plan.folder, plan.name):
        labels = read_labels(config, recipe.label).count
        description = "1 label" if labels == 1 else "2 labels: the share of the second"
        if recipe.label is not None:
            description = f"{labels} labels: the probability of {recipe.label}"
        return f"classifier of {description}", {}, declared_activation(config, labels)
    answers = read_answers(config, prompts.token_id, recipe)
    names = [prompts.tokenizer.tokenizer.id_to_token(token) or str(token) for token in answers.ids]
    description = f"logit of {names[0]!r}" if len(names) == 1 else f"logit of {names[1]!r} minus logit of {names[0]!r}"
    if recipe.family == "encoder-decoder" and answers.activation == "identity":
        description = f"logarithm of the probability of {names[-1]!r} against {names[0]!r}"
    if answers.divisor != 1:
        description += f", divided by {answers.divisor:g}"
    return description, dict(zip(names, answers.ids, strict=True)), answers.activation


def _comparison(plan: Plan) -> str:
    """The head, in words, of a model that reads query and document apart."""
    if plan.choice.recipe.family == "late-interaction":
        return _late_interaction(plan)
    _, pooling, *later_modules = embedding_modules(plan.folder)
    settings = read_settings(plan.folder, "SentenceTransformer")
    measure = "cosine" if settings.similarity == "cosine" else "dot product"
    description = f"{measure} of embeddings by {' and '.join(pooling_modes(pooling))} pooling"
    steps = [module.kind for module in later_modules if module.kind != "Normalize"]
    description += f", then {', '.join(steps)}" if steps else ""
    return description + (f", of {settings.truncate_dim} values" if settings.truncate_dim else "")


def _late_interaction(plan: Plan) -> str:
    settings = read_late_interaction(plan.folder)
    description = "mean" if settings.mean else "sum"
    description = f"{description} over the query's tokens of the largest product with a document's tokens"
    if settings.expansion is not None:
        description += f"; queries filled to {settings.expansion.length} tokens"
    if count := len(settings.skipped):
        description += f"; {counted(count, 'token')} that {noun(count, 'does', 'do')} not count"
    return description


def _template(plan: Plan) -> str | None:
    if plan.choice.recipe.listwise is not None:
        return f"built in for {plan.choice.recipe.name}"
    if plan.prompts.template is None:
        return None
    if plan.options.chat_template is not None:
        return "--chat-template"
    built_in = plan.prompts.template is plan.choice.recipe.template
    return f"built in for {plan.choice.recipe.name}" if built_in else "the folder's chat template"


def _example(plan: Plan) -> tuple[str, ...]:
    group = plan.prompts.build(RerankRequest(text_content(QUERY), (text_content(DOCUMENT),)))
    parts = [group.prefix.token_ids, group.suffixes[0].token_ids]
    whole = [parts[0] + parts[1]] if plan.choice.recipe.pairs else parts
    tokenizer = plan.prompts.tokenizer.tokenizer
    return tuple(tokenizer.decode(ids, skip_special_tokens=False) for ids in whole)


def _other_files(plan: Plan) -> Iterator[str]:
    read_folders = {module.folder for module in read_modules(plan.folder) or ()}
    for path in sorted(plan.folder.iterdir()):
        if path.is_dir() and path not in read_folders and path.name[:1] != ".":
            yield f"{path.name}/"
        elif path.is_file() and not any(fnmatch.fnmatch(path.name, pattern) for pattern in FILES):
            yield f"{path.name} (not run)" if path.suffix == ".py" else path.name


def _not_understood(plan: Plan) -> Iterator[str]:
    folder, recipe = plan.folder, plan.choice.recipe
    modules = read_modules(folder) or ()
    if "auto_map" in plan.config.entries and not (
        plan.options.trust_remote_code and plan.backend()[0] == "transformers"
    ):
        yield "config.json: `auto_map` names code of the folder's own, which is not run"
    # The entries of --hf-overrides are in the configuration, and count as the folder's own.
    yield from _unknown("config.json", set(plan.config.entries) - READ - WITHOUT_EFFECT)
    late = recipe.family == "late-interaction"
    kind: Kind = "CrossEncoder" if recipe.pairs else "MultiVectorEncoder" if late else "SentenceTransformer"
    if (folder / SETTINGS).is_file():
        if settings_apply(folder, kind):
            known_names = SETTING_NAMES | (LATE_NAMES if late else set())
            yield from _unknown(SETTINGS, set(read_json(folder / SETTINGS)) - known_names)
        else:
            yield f"{SETTINGS}: not read, for want of {MODULES} or since its `model_type` is not {kind}"
    if modules:
        path, settings = transformer_settings(modules[0].folder)
        yield from _unknown(path.name, set(settings) - TRANSFORMER_NAMES - (LATE_NAMES if late else set()))


def _unknown(file: str, names: set[str]) -> Iterator[str]:
    for name in sorted(names):
        yield f"{file}: `{name}` has no effect"
