"""The settings of a sentence-transformers folder besides its modules: activation, prompts, length of texts.

Reference: `_parse_model_config` of `base/model.py` and `cross_encoder/model.py`, and `load_config` of
`base/modules/transformer.py`, in sentence-transformers 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rerankd.core import ModelError
from rerankd.models.checkpoint.json_files import read_json, shown

Kind: TypeAlias = Literal["CrossEncoder", "SentenceTransformer", "MultiVectorEncoder"]
"""The classes of sentence-transformers that can load a folder."""
Similarity: TypeAlias = Literal["cosine", "dot"]
"""Similarity of two embeddings."""
MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Files that may hold the settings of a folder's transformer, in the order in which sentence-transformers looks."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a folder. They are empty for a folder without modules.json, as in sentence-transformers.

    activation: the entry `activation_fn`; None if it is missing
    prompts: texts that are put before a query or document, by name
    default_prompt: put before a cross-encoder's queries, or into a decoder's system turn; None for no prompt
    truncate_dim: an embedding is cut to this number of values; None for all
    """

    activation: object = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: Similarity = "cosine"
    truncate_dim: int | None = None


def settings_apply(folder: Path, kind: Kind) -> bool:
    """Whether the settings of a folder apply to a model of `kind`.

    sentence-transformers ignores the settings of a folder without modules.json, and of a folder that was saved as a
    model of another kind, from which it reads the weights alone.
    """
    path = folder / SETTINGS
    if not (folder / MODULES).is_file():
        return False
    saved: object = (read_json(path) if path.is_file() else {}).get("model_type", "SentenceTransformer")
    # PyLate writes ColBERT, or in older versions nothing.
    return saved == kind or kind == "MultiVectorEncoder"


def read_settings(folder: Path, kind: Kind) -> Settings:
    """Read the settings of a folder for a model of `kind`. Raises ModelError for an invalid file."""
    path = folder / SETTINGS
    if not path.is_file() or not settings_apply(folder, kind):
        return Settings()
    settings = read_json(path)
    by_name = settings.get("prompts") or {}
    if not isinstance(by_name, dict) or not all(isinstance(text, str | None) for text in by_name.values()):
        raise ModelError(f"{path}: `prompts` must be an object of texts, not {shown(by_name)}.")
    prompts = {name: text for name, text in by_name.items() if text}
    name = settings.get("default_prompt_name")
    if name is not None and (not isinstance(name, str) or name not in by_name):
        raise ModelError(f"{path}: `default_prompt_name` must be one of `prompts`, not {shown(name)}.")
    common = Settings(settings.get("activation_fn"), prompts, prompts.get(name) if name is not None else None)
    if kind != "SentenceTransformer":
        return common
    return replace(common, similarity=_similarity(path, settings), truncate_dim=_truncate_dim(path, settings))


def _similarity(path: Path, settings: Mapping[str, Any]) -> Similarity:
    name = settings.get("similarity_fn_name")
    if name not in (None, "cosine", "dot"):
        raise ModelError(f"{path}: `similarity_fn_name` is {shown(name)}; only cosine and dot are supported.")
    return "dot" if name == "dot" else "cosine"


def _truncate_dim(path: Path, settings: Mapping[str, Any]) -> int | None:
    size = settings.get("truncate_dim")
    if size is not None and (type(size) is not int or size < 1):
        raise ModelError(f"{path}: `truncate_dim` must be a number of values, at least 1, not {shown(size)}.")
    return size


def transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the settings of the transformer in `folder`, and these settings; they may be empty."""
    for name in TRANSFORMER:
        if (folder / name).is_file() and (settings := read_json(folder / name)):
            return folder / name, settings
    return folder / TRANSFORMER[0], {}


def declared_length(folder: Path) -> int | None:
    """The most tokens of a text or prompt, by the settings of the transformer in `folder`; None without a limit.

    `processing_kwargs` take precedence over the arguments of the tokenizer, and these over `max_seq_length`.
    Raises ModelError for an invalid setting.
    """
    path, settings = transformer_settings(folder)
    processing = section(settings, "processing_kwargs", path)
    for owner, name in (
        (section(processing, "chat_template", path), "max_length"),
        (section(processing, "text", path), "max_length"),
        (section(settings, "processor_kwargs", path) or section(settings, "tokenizer_args", path), "model_max_length"),
        (settings, "max_seq_length"),
    ):
        value = owner.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not 1 <= value < float("inf"):
            raise ModelError(f"{path}: `{name}` must be a number of tokens, at least 1, not {shown(value)}.")
        return int(value)
    return None


def section(settings: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A nested object of the settings; empty if it is missing. Raises ModelError for another value."""
    value = settings.get(name)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"{path}: `{name}` must be an object, not {shown(value)}.")
    return value or {}
