"""The chain of modules that a sentence-transformers folder lists, and whether a model can be served with it.

Reference: `modules.json` and its files as sentence-transformers writes and reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.files import inside
from rerankd.models.checkpoint.json_files import read_json, read_json_list, shown
from rerankd.models.checkpoint.sentence_transformers import MODULES, counts, transformer_settings
from rerankd.models.recipes.recipe import Recipe

TASKS = {"classifier": ("sequence-classification",), "language model": ("text-generation", "any-to-any")}
Mode: TypeAlias = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How a module Pooling pools."""
Chain: TypeAlias = Literal["embedding", "scores"]
FLAGS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Older entries of a module Pooling, each for a mode, in the order in which pooled states follow one another."""
BEHIND_POOLING = {"Dense", "LayerNorm", "Normalize"}


@dataclass(frozen=True, slots=True)
class Module:
    """A step of the chain: the name of its class, with the package where that is not sentence-transformers' own, and
    the folder of its files."""

    kind: str
    folder: Path


def read_modules(folder: Path) -> tuple[Module, ...] | None:
    """The modules of the folder in their order; None where it lists none. ModelError for a list that cannot be read."""
    path = folder / MODULES
    if not path.is_file():
        return None
    modules = []
    for listed in read_json_list(path):
        kind, where = listed.get("type"), listed.get("path", "")
        if not isinstance(kind, str) or not isinstance(where, str):
            raise ModelError(f"{path} lists {shown(listed)}; a module has a `type` and a `path`, which are strings.")
        own = kind.startswith("sentence_transformers.") or kind == "pylate.models.Dense.Dense"
        modules.append(Module(kind.rsplit(".", 1)[-1] if own else shown(kind), inside(folder, where, path)))
    if not modules:
        raise ModelError(f"{path} lists no modules.")
    return tuple(modules)


def chained(folder: Path) -> Chain | None:
    """The result of a chain of modules: embeddings of texts, or scores of pooled pairs; None for any other."""
    kinds = [module.kind for module in read_modules(folder) or ()]
    if kinds[:2] != ["Transformer", "Pooling"] or "LogitScore" in kinds:
        return None
    if counts(folder, "SentenceTransformer"):
        return "embedding"
    scores = "Dense" in kinds and set(kinds[2:]) <= {"Dense", "LayerNorm"} and counts(folder, "CrossEncoder")
    return "scores" if scores else None


def embedding_modules(folder: Path) -> tuple[Module, ...]:
    """The modules of a chain that makes embeddings: Transformer, Pooling, and those behind them.

    Raises ModelError for a folder without any, and for modules that would change the embeddings and are unknown.
    """
    modules = read_modules(folder)
    if modules is None:
        raise ModelError(
            f"{folder / 'config.json'} describes a bare encoder and there is no {MODULES} beside it "
            "that says how to pool; a bi-encoder comes as a sentence-transformers folder."
        )
    kinds = [module.kind for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= BEHIND_POOLING:
        raise ModelError(
            f"{folder / MODULES} lists {', '.join(kinds)}; a bi-encoder is supported with Transformer, Pooling and "
            f"behind them {', '.join(sorted(BEHIND_POOLING))}."
        )
    pooling_modes(modules[1])
    return modules


def expect_modules(name: str, recipe: Recipe, folder: Path) -> bool:
    """Whether modules.json says how a decoder's prompt is written.

    Raises ModelError for modules that make another score, or another thing, of the architecture `name` than is served,
    and for a bare encoder without any.
    """
    if not recipe.pairs:
        embedding_modules(folder)
        return False
    modules = read_modules(folder)
    if modules is None:
        return False
    kinds = [module.kind for module in modules]
    said = f"{folder / MODULES} lists {', '.join(kinds)}"
    if "Pooling" in kinds and not {"Dense", "LogitScore"} & set(kinds):
        raise ModelError(
            f"{said}, so this is an embedding model, which is not supported over {name}; serve a reranker, or an "
            "embedding model over a bare encoder (BertModel) or over Qwen3."
        )
    classifier = "LogitScore" not in kinds and name.endswith("ForSequenceClassification")
    expected = ["Transformer"] if classifier or not recipe.answers else ["Transformer", "LogitScore"]
    if kinds != expected:
        raise ModelError(f"{said}; a reranker over {name} is supported with {' and '.join(expected)} alone.")
    if modules[0].folder != folder:
        raise ModelError(
            f"{folder / MODULES} has its Transformer in {modules[0].folder}; only one in {folder} is supported."
        )
    _expect_task(folder, TASKS["classifier" if classifier else "language model"])
    return bool(recipe.answers)


def pooling_modes(module: Module) -> tuple[Mode, ...]:
    """How a module Pooling pools, and in which order; ModelError for a way that is not supported."""
    path = module.folder / "config.json"
    pooling = read_json(path)
    if pooling.get("include_prompt", True) is not True:
        raise ModelError(f"{path}: `include_prompt` is {shown(pooling['include_prompt'])}; only true is supported.")
    named = pooling.get("pooling_mode")
    modes: object = [named] if isinstance(named, str) else named
    if modes is None:
        modes = [mode for key, mode in FLAGS.items() if pooling.get(key) is True]
    if not isinstance(modes, list) or not modes or not all(mode in FLAGS.values() for mode in modes):
        raise ModelError(f"{path} pools by {shown(modes)}; supported are {', '.join(FLAGS.values())}.")
    return tuple(modes)


def read_logit_score(folder: Path) -> tuple[int, ...] | None:
    """The ids of the tokens whose logits score, (false, true) or (true,); None where no LogitScore is listed."""
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
