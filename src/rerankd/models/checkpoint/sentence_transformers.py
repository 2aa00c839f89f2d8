"""What a sentence-transformers folder says beside its modules: activation, prompts, the length of a text.

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
"""The kind of model as which a folder is read."""
Similarity: TypeAlias = Literal["cosine", "dot"]
"""How two embeddings are compared."""
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
"""The files with the settings of a folder's transformer, in sentence-transformers' order."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A folder's settings; empty for a folder without modules.json, of which sentence-transformers reads none.

    activation: as SETTINGS names it; None where it names none
    prompts: beginnings of texts, by name
    default_prompt: the beginning of a cross-encoder's queries, or of a decoder's system turn; None for no prompt
    similarity: of two embeddings
    truncate_dim: the number of first values of an embedding that are read; None for all
    """

    activation: object = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: Similarity = "cosine"
    truncate_dim: int | None = None


def counts(folder: Path, kind: Kind) -> bool:
    """Whether the settings of a folder count for a model of `kind`.

    sentence-transformers reads no settings of a folder without modules.json. Of a folder that was saved as another kind
    it reads the weights alone.
    """
    path = folder / SETTINGS
    if not (folder / MODULES).is_file():
        return False
    saved: object = (read_json(path) if path.is_file() else {}).get("model_type", "SentenceTransformer")
    # PyLate's folders say ColBERT, and older ones nothing.
    return saved == kind or kind == "MultiVectorEncoder"


def read_settings(folder: Path, kind: Kind) -> Settings:
    """The settings of a folder that is read as a model of `kind`. ModelError for a file that cannot be read."""
    path = folder / SETTINGS
    if not path.is_file() or not counts(folder, kind):
        return Settings()
    settings = read_json(path)
    written = settings.get("prompts") or {}
    if not isinstance(written, dict) or not all(isinstance(text, str | None) for text in written.values()):
        raise ModelError(f"{path}: `prompts` must be an object of texts, not {shown(written)}.")
    prompts = {name: text for name, text in written.items() if text}
    name = settings.get("default_prompt_name")
    if name is not None and (not isinstance(name, str) or name not in written):
        raise ModelError(f"{path}: `default_prompt_name` must be one of `prompts`, not {shown(name)}.")
    found = Settings(settings.get("activation_fn"), prompts, prompts.get(name) if name is not None else None)
    if kind != "SentenceTransformer":
        return found
    return replace(found, similarity=_similarity(path, settings), truncate_dim=_truncate_dim(path, settings))


def _similarity(path: Path, settings: Mapping[str, Any]) -> Similarity:
    name = settings.get("similarity_fn_name")
    if name not in (None, "cosine", "dot"):
        raise ModelError(f"{path}: `similarity_fn_name` is {shown(name)}; cosine and dot are supported.")
    return "dot" if name == "dot" else "cosine"


def _truncate_dim(path: Path, settings: Mapping[str, Any]) -> int | None:
    size = settings.get("truncate_dim")
    if size is not None and (type(size) is not int or size < 1):
        raise ModelError(f"{path}: `truncate_dim` must be a number of values, at least 1, not {shown(size)}.")
    return size


def transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The settings of the transformer in `folder`, and their file; empty where there are none."""
    for name in TRANSFORMER:
        if (folder / name).is_file() and (settings := read_json(folder / name)):
            return folder / name, settings
    return folder / TRANSFORMER[0], {}


def declared_length(folder: Path) -> int | None:
    """The most tokens of a text, or a prompt, by the settings of the transformer in `folder`; None where they set no
    limit.

    `processing_kwargs` comes first, then the tokenizer's own arguments, then `max_seq_length`.
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
    """An object among the settings; empty where there is none."""
    value = settings.get(name)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"{path}: `{name}` must be an object, not {shown(value)}.")
    return value or {}
