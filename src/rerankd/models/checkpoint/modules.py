"""The chain of modules that a sentence-transformers folder lists, and whether a model can be served with it.

Reference: `modules.json` and its files as sentence-transformers writes and reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.files import inside
from rerankd.models.checkpoint.json_files import read_json, read_json_list, shown
from rerankd.models.checkpoint.sentence_transformers import MODULES, counts, transformer_settings
from rerankd.models.recipes.recipe import Recipe

TASKS = {"classifier": ("sequence-classification",), "language model": ("text-generation", "any-to-any")}
Pooling = Literal["mean", "cls"]


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
        own = kind.startswith("sentence_transformers.")
        modules.append(Module(kind.rsplit(".", 1)[-1] if own else shown(kind), inside(folder, where, path)))
    if not modules:
        raise ModelError(f"{path} lists no modules.")
    return tuple(modules)


def expect_modules(name: str, recipe: Recipe, folder: Path) -> bool:
    """Whether the modules say how a decoder's prompt is written. Without modules.json they do not.

    Raises ModelError for modules that make another score, or another thing, of the architecture `name` than is served,
    and for a bi-encoder without any.
    """
    modules = read_modules(folder)
    if not recipe.pairs:
        if modules is None:
            raise ModelError(
                f"{folder / 'config.json'} describes a bare encoder ({name}) and there is no {MODULES} beside it "
                "that says how to pool; a bi-encoder comes as a sentence-transformers folder."
            )
        read_pooling(folder)
        return False
    if modules is None:
        return False
    kinds = [module.kind for module in modules]
    said = f"{folder / MODULES} lists {', '.join(kinds)}"
    if "Pooling" in kinds and not {"Dense", "LogitScore"} & set(kinds):
        raise ModelError(
            f"{said}, so this is an embedding model, which is not supported over {name}; serve a reranker, or an "
            "embedding model over BertModel or XLMRobertaModel."
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


def is_scoring_chain(folder: Path) -> bool:
    """Whether the modules pool a pair and make scores of the pooled state."""
    kinds = [module.kind for module in read_modules(folder) or ()]
    rest = kinds[2:]
    chained = kinds[:2] == ["Transformer", "Pooling"] and "Dense" in rest and set(rest) <= {"Dense", "LayerNorm"}
    return chained and counts(folder, "CrossEncoder")


def read_pooling(folder: Path) -> Pooling:
    """How the folder's `modules.json` pools; ModelError for modules that would change the score and are unknown."""
    modules = read_modules(folder) or ()
    kinds = [module.kind for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            f"{folder / MODULES} lists {', '.join(kinds)}; supported are Transformer, Pooling and Normalize."
        )
    return pooling_of(modules[1])


def pooling_of(module: Module) -> Pooling:
    """How a module Pooling pools; ModelError for a way that is not supported."""
    path = module.folder / "config.json"
    pooling = read_json(path)
    modes = [key.removeprefix("pooling_mode_") for key, value in pooling.items() if value is True and "mode" in key]
    mode = pooling.get("pooling_mode") or "+".join(modes)
    if pooling.get("include_prompt", True) is not True:
        raise ModelError(f"{path}: `include_prompt` is {shown(pooling['include_prompt'])}; only true is supported.")
    match str(mode).removesuffix("_tokens").removesuffix("_token"):
        case "mean":
            return "mean"
        case "cls":
            return "cls"
    raise ModelError(f"{path} pools by {shown(mode)}; supported are mean and CLS pooling.")


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
