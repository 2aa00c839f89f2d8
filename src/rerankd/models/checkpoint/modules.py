"""The modules that a sentence-transformers folder lists, and whether they are supported.

Reference: `modules.json` and the modules' files, as sentence-transformers writes and reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.files import inside
from rerankd.models.checkpoint.json_files import read_json, read_json_list, shown
from rerankd.models.checkpoint.sentence_transformers import MODULES, settings_apply, transformer_settings
from rerankd.models.recipes.recipe import Recipe

TASKS = {"classifier": ("sequence-classification",), "language model": ("text-generation", "any-to-any")}
Mode: TypeAlias = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""Methods of the module Pooling, by their names in sentence-transformers."""
Chain: TypeAlias = Literal["embedding", "scores"]
"""The result of a chain of modules."""
FLAGS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Older entries of the module Pooling, one for each mode, in the order in which pooled states are concatenated."""
AFTER_POOLING = {"Dense", "LayerNorm", "Normalize"}


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the chain.

    kind: the name of its class; with the package, unless that is sentence-transformers
    folder: the folder of its files
    """

    kind: str
    folder: Path


def read_modules(folder: Path) -> tuple[Module, ...] | None:
    """The modules of a folder in order; None without modules.json. Raises ModelError for an invalid list."""
    path = folder / MODULES
    if not path.is_file():
        return None
    modules = []
    for listed in read_json_list(path):
        kind, path_in_folder = listed.get("type"), listed.get("path", "")
        if not isinstance(kind, str) or not isinstance(path_in_folder, str):
            raise ModelError(f"{path} lists {shown(listed)}; a module needs a `type` and a `path`, both strings.")
        known = kind.startswith("sentence_transformers.") or kind == "pylate.models.Dense.Dense"
        modules.append(Module(kind.rsplit(".", 1)[-1] if known else shown(kind), inside(folder, path_in_folder, path)))
    if not modules:
        raise ModelError(f"{path} lists no modules.")
    return tuple(modules)


def chain_of(folder: Path) -> Chain | None:
    """What the modules of a folder compute: embeddings of texts, or scores of pooled pairs; None for other modules."""
    kinds = [module.kind for module in read_modules(folder) or ()]
    if kinds[:2] != ["Transformer", "Pooling"] or "LogitScore" in kinds:
        return None
    if settings_apply(folder, "SentenceTransformer"):
        return "embedding"
    scores = "Dense" in kinds and set(kinds[2:]) <= {"Dense", "LayerNorm"} and settings_apply(folder, "CrossEncoder")
    return "scores" if scores else None


def embedding_modules(folder: Path) -> tuple[Module, ...]:
    """The modules that compute an embedding: Transformer, Pooling, and the modules after them.

    Raises ModelError for a folder without modules.json, and for unsupported modules.
    """
    modules = read_modules(folder)
    if modules is None:
        raise ModelError(
            f"{folder / 'config.json'} describes a bare encoder, and there is no {MODULES} beside it that says how to "
            "pool; serve a folder that sentence-transformers saved."
        )
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= AFTER_POOLING:
        raise ModelError(
            f"{folder / MODULES} lists {', '.join(kinds)}; a bi-encoder must have Transformer and Pooling, and after "
            f"them only {', '.join(sorted(AFTER_POOLING))}."
        )
    pooling_modes(modules[1])
    return modules


def expect_modules(name: str, recipe: Recipe, folder: Path) -> bool:
    """Check a folder's modules against its recipe.

    name: the architecture, such as Qwen3ForCausalLM

    Returns whether the modules give a decoder's prompt. Raises ModelError for modules that compute something else than
    the recipe's score, and for a bare encoder without modules.
    """
    if not recipe.pairs:
        embedding_modules(folder)
        return False
    modules = read_modules(folder)
    if modules is None:
        return False
    kinds = [module.kind for module in modules]
    listed = f"{folder / MODULES} lists {', '.join(kinds)}"
    if "Pooling" in kinds and not {"Dense", "LogitScore"} & set(kinds):
        raise ModelError(
            f"{listed}, so this is an embedding model, which is not supported for {name}; serve a reranker, or an "
            "embedding model of a bare encoder (BertModel) or of Qwen3."
        )
    classifier = "LogitScore" not in kinds and name.endswith("ForSequenceClassification")
    expected = ["Transformer"] if classifier or not recipe.answers else ["Transformer", "LogitScore"]
    if kinds != expected:
        raise ModelError(f"{listed}; a reranker of {name} is supported only with {' and '.join(expected)}.")
    if modules[0].folder != folder:
        raise ModelError(
            f"{folder / MODULES} has its Transformer in {modules[0].folder}; only {folder} itself is supported."
        )
    _expect_task(folder, TASKS["classifier" if classifier else "language model"])
    return bool(recipe.answers)


def pooling_modes(module: Module) -> tuple[Mode, ...]:
    """The modes of a module Pooling, in the order of concatenation. Raises ModelError for unsupported settings."""
    path = module.folder / "config.json"
    pooling = read_json(path)
    if pooling.get("include_prompt", True) is not True:
        raise ModelError(f"{path}: `include_prompt` is {shown(pooling['include_prompt'])}; only true is supported.")
    entry = pooling.get("pooling_mode")
    modes: object = [entry] if isinstance(entry, str) else entry
    if modes is None:
        modes = [mode for key, mode in FLAGS.items() if pooling.get(key) is True]
    if not isinstance(modes, list) or not modes or not all(mode in FLAGS.values() for mode in modes):
        raise ModelError(f"{path} pools by {shown(modes)}; supported are {', '.join(FLAGS.values())}.")
    return tuple(modes)


def read_logit_score(folder: Path) -> tuple[int, ...] | None:
    """The answer tokens' ids of the module LogitScore, (false, true) or (true,); None without such a module."""
    for module in read_modules(folder) or ():
        if module.kind == "LogitScore":
            path = module.folder / "config.json"
            config = Config(read_json(path), str(path))
            config.require("module_input_name", "causal_logits")
            true = config.size("true_token_id", least=0)
            if config.entries.get("false_token_id") is None:
                return (true,)
            return config.size("false_token_id", least=0), true
    return None


def _expect_task(folder: Path, tasks: tuple[str, ...]) -> None:
    path, settings = transformer_settings(folder)
    task = settings.get("transformer_task")
    if task is not None and task not in tasks:
        raise ModelError(f"{path}: `transformer_task` is {shown(task)}; only {' or '.join(tasks)} is supported here.")
