"""The settings of a late-interaction model (such as ColBERT), read from its folder.

Reference: `multi_vector_encoder/model.py` in sentence-transformers 6, which also reads the folders of PyLate and of
Stanford's ColBERT.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import read_json, shown
from rerankd.models.checkpoint.modules import Module, read_modules
from rerankd.models.checkpoint.sentence_transformers import SETTINGS, read_settings, transformer_settings

METADATA = "artifact.metadata"
"""The file with the settings of Stanford's ColBERT."""
QUERY_LENGTH = 32
"""Default number of tokens of an expanded query, as in ColBERT."""
MEASURES = {"maxsim": False, "meanmaxsim": True}
"""Values of `similarity_fn_name`, and whether the sum is divided by the number of query tokens."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """The expansion of a short query by mask tokens, whose vectors count in MaxSim (Khattab and Zaharia, 2020).

    length: number of tokens of the query with the mask tokens
    attend: whether all tokens attend to the mask tokens
    cuts: whether a longer query is cut to `length`
    token: the token that is appended; None is the tokenizer's mask token, or the last token of a text if there is none
    """

    length: int
    attend: bool = False
    cuts: bool = True
    token: str | None = None


@dataclass(frozen=True, slots=True)
class LateInteraction:
    """How texts are tokenised, and which tokens count in MaxSim.

    query_prompt, document_prompt: put before each query or document
    marked: whether a prompt may begin with a marker, which is any one token of the vocabulary; otherwise only special
        tokens are recognised in a prompt
    query_length, document_length: most tokens of a text; None is the tokenizer's limit
    skipped: words whose tokens do not count, in the kinds of text (`query`, `document`) in `skipped_in`
    mean: whether the sum over the query's tokens is divided by their number
    """

    query_prompt: str
    document_prompt: str
    marked: bool
    query_length: int | None
    document_length: int | None
    expansion: Expansion | None
    skipped: tuple[str, ...]
    skipped_in: tuple[str, ...] = ("document",)
    mean: bool = False


def is_late_interaction(folder: Path) -> bool:
    """Whether a folder holds a late-interaction model, whose modules compute a vector for each token."""
    modules = read_modules(folder)
    path = folder / SETTINGS
    if modules is None or not path.is_file() or any(module.kind == "Pooling" for module in modules):
        return False
    settings = read_json(path)
    return settings.get("model_type") in ("MultiVectorEncoder", "ColBERT") or "query_prefix" in settings


def token_modules(folder: Path) -> tuple[Module, ...]:
    """The modules after the transformer that compute the vector of a token. Raises ModelError for unknown modules.

    PyLate normalises vectors even though its folders list no module for that.
    """
    first, *rest = read_modules(folder) or ()
    kinds = [module.kind for module in (first, *rest)]
    if kinds[0] != "Transformer" or not set(kinds[1:]) <= {"Dense", "Normalize", "MultiVectorMask"}:
        raise ModelError(
            f"{folder / 'modules.json'} lists {', '.join(kinds)}; for late interaction, only Transformer, Dense, "
            "MultiVectorMask and Normalize are supported."
        )
    return tuple(module for module in rest if module.kind != "MultiVectorMask")


def read_late_interaction(folder: Path) -> LateInteraction:
    """Read the settings from a folder of sentence-transformers, PyLate or Stanford's ColBERT. Raises ModelError."""
    modules = read_modules(folder)
    if modules is None:
        path = folder / METADATA
        return _stanford(Config(read_json(path) if path.is_file() else {}, str(path)))
    path = folder / SETTINGS
    settings = Config(read_json(path), str(path))
    prompts = read_settings(folder, "MultiVectorEncoder").prompts
    if settings.entries.get("model_type") == "MultiVectorEncoder" and "query_prefix" not in settings.entries:
        return _native(settings, prompts, modules)
    return _pylate(settings, prompts)


def _stanford(metadata: Config) -> LateInteraction:
    return LateInteraction(
        query_prompt=metadata.get("query_token_id", str, "[unused0]") + " ",
        document_prompt=metadata.get("doc_token_id", str, "[unused1]") + " ",
        marked=True,
        query_length=None,
        document_length=_length(metadata, "doc_maxlen"),
        expansion=Expansion(
            _length(metadata, "query_maxlen") or QUERY_LENGTH, metadata.flag("attend_to_mask_tokens") is True
        ),
        skipped=() if metadata.flag("mask_punctuation") is False else tuple(string.punctuation),
    )


def _pylate(settings: Config, prompts: Mapping[str, str]) -> LateInteraction:
    expansion, length = None, _length(settings, "query_length")
    if settings.flag("do_query_expansion") is not False:
        attend = settings.flag("attend_to_expansion_tokens") is True
        expansion, length = Expansion(length or QUERY_LENGTH, attend), None
    query, document = settings.get("query_prefix", str, ""), settings.get("document_prefix", str, "")
    skipped = settings.entries.get("skiplist_words")
    return LateInteraction(
        query_prompt=query + prompts.get("query", "").removeprefix(query),
        document_prompt=document + prompts.get("document", "").removeprefix(document),
        marked=True,
        query_length=length,
        document_length=_length(settings, "document_length"),
        expansion=expansion,
        skipped=tuple(string.punctuation) if skipped is None else _words(settings, "skiplist_words"),
        mean=_mean(settings),
    )


def _native(settings: Config, prompts: Mapping[str, str], modules: tuple[Module, ...]) -> LateInteraction:
    path, entries = transformer_settings(modules[0].folder)
    transformer = Config(entries, str(path))
    skipped: tuple[str, ...] = ()
    skipped_in: tuple[str, ...] = ("document",)
    for module in modules:
        if module.kind == "MultiVectorMask":
            path = module.folder / "config.json"
            mask = Config(read_json(path), str(path))
            mask.require("keep_only_token_ids", None, [])
            skipped, skipped_in = _words(mask, "skiplist_words"), _words(mask, "skiplist_tasks", skipped_in)
    return LateInteraction(
        query_prompt=prompts.get("query", ""),
        document_prompt=prompts.get("document", ""),
        marked=False,
        query_length=_length(transformer, "query_length"),
        document_length=_length(transformer, "document_length"),
        expansion=_expansion(transformer) if any(module.kind == "MultiVectorMask" for module in modules) else None,
        skipped=skipped,
        skipped_in=skipped_in,
        mean=_mean(settings),
    )


def _expansion(transformer: Config) -> Expansion | None:
    if transformer.entries.get("query_expansion") is None:
        return None
    section = transformer.section("query_expansion")
    section.require("strategy", "fixed", "min")
    token = section.entries.get("token")
    if token is not None and not isinstance(token, str):
        raise section.wrong("token", "must be a token")
    cuts = section.entries.get("strategy") != "min"
    return Expansion(section.size("length"), section.flag("attend") is True, cuts, token)


def _length(config: Config, name: str) -> int | None:
    return None if config.entries.get(name) is None else config.size(name)


def _words(config: Config, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    words: Any = config.entries.get(name)
    if words is None:
        return default
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise config.wrong(name, "must be a list of strings")
    return tuple(words)


def _mean(settings: Config) -> bool:
    name = settings.entries.get("similarity_fn_name")
    if name is None or (isinstance(name, str) and name.lower() in ("cosine", "dot")):
        return False  # older folders were saved with these values, and their score is MaxSim
    if not isinstance(name, str) or name.lower() not in MEASURES:
        raise ModelError(f"{settings.source}: `similarity_fn_name` is {shown(name)}; known: {', '.join(MEASURES)}.")
    return MEASURES[name.lower()]
