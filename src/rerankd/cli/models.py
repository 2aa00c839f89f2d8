"""`rerankd models`: the models in the local cache that can be served. Heavy imports wait until it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class Cached:
    """A model in the cache. `served` describes a supported model; `reason` says why another is not supported."""

    name: str
    folder: Path
    size: int
    served: tuple[str, ...] = ()
    reason: str = ""


def models(
    everything: Annotated[
        bool, typer.Option("--all", help="Also list models that are not supported, with the reason.")
    ] = False,
) -> None:
    """List the models in the local cache of the Hugging Face hub that are supported."""
    logging.getLogger("rerankd").setLevel(logging.ERROR)
    candidates = sorted(cached(), key=lambda model: model.name.lower())
    served = [model for model in candidates if model.served]
    if served:
        rows: list[tuple[str, ...]] = [("MODEL", "FAMILY", "ARCHITECTURE", "RECIPE", "TOKENS", "SIZE")]
        rows += [(model.name, *model.served, f"{model.size / GIGABYTE:.1f} GB") for model in served]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        print("No model in the cache can be served; `rerankd serve ID` fetches one.")
    others = [model for model in candidates if not model.served]
    if everything:
        for model in others:
            print(f"{model.name}: {model.reason}")
    elif others:
        print(f"{len(others)} more in the cache cannot be served; --all says why.")


def cached() -> Iterator[Cached]:
    """The embedded model, if its package is installed, and every model in the cache of the hub."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    from rerankd.cli.default_model import default_model

    embedded = default_model()
    if (folder := Path(embedded.model)).is_dir():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        yield _looked_at(embedded.names[0], folder, size)
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        for revision in repository.revisions:
            is_main = "main" in revision.refs or len(repository.revisions) == 1
            name = repository.repo_id if is_main else f"{repository.repo_id}@{revision.commit_hash[:8]}"
            yield _looked_at(name, revision.snapshot_path, revision.size_on_disk)


def _looked_at(name: str, folder: Path, size: int) -> Cached:
    from rerankd.core import ModelError
    from rerankd.loading import plan
    from rerankd.options import LoadOptions

    try:
        model_plan = plan(LoadOptions(str(folder), device="cpu"), weights=False)
        model_plan.tensors()
    except ModelError as error:
        return Cached(name, folder, size, reason=str(error))
    recipe = model_plan.choice.recipe
    return Cached(
        name, folder, size, (recipe.family, model_plan.name, recipe.name, f"{model_plan.prompts.max_tokens:,}")
    )
