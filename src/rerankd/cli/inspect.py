"""`rerankd inspect`: how a model would be scored, without reading its weights."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rerankd.cli.groups import Values, grouped
from rerankd.cli.options import LOADING, MODEL
from rerankd.core import RerankdError

if TYPE_CHECKING:
    from rerankd.inspection import Inspection


@grouped
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    *,
    loading: Annotated[Values, LOADING.but("gpu_memory_utilization", "max_batch_tokens")],
) -> None:
    """Print how a model would be scored, and why, without reading its weights."""
    from rerankd.inspection import inspect as look
    from rerankd.loading import plan
    from rerankd.options import LoadOptions

    try:
        found = look(plan(LoadOptions(model, **loading), weights=False))
    except RerankdError as error:
        print(f"rerankd: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(json.dumps(dataclasses.asdict(found), ensure_ascii=False, indent=2) if as_json else _text(found))


def _text(found: Inspection) -> str:
    limit = f"{found.max_tokens} tokens of one prompt (positions: {found.positions})"
    precision = found.dtype + (f", {found.quantization} linear layers" if found.quantization else "")
    lines = {
        "model": found.model,
        "folder": found.folder,
        "architecture": found.architecture,
        "recipe": f"{found.recipe}: {found.why}",
        "head": found.head,
        "tokens": ", ".join(f"{name!r} is {token}" for name, token in found.tokens.items()),
        "activation": found.activation,
        "template": found.template,
        "instruction": found.default_instruction,
        "limit": limit,
        "device": found.device,
        "ranks": f"{found.tensor_parallel_size}, each a part of every layer" if found.tensor_parallel_size > 1 else "",
        "replicas": f"{found.data_parallel_size}, each the whole model" if found.data_parallel_size > 1 else "",
        "dtype": precision,
        "weights": found.stored,
        "backend": found.backend,
    }
    shown = [f"{name + ':':<14}{value}" for name, value in lines.items() if value]
    for prompt in found.prompts:
        shown += ["prompt:", *(f"    {line}" for line in prompt.split("\n"))]
    if found.not_understood:
        shown += ["not understood:", *(f"    {one}" for one in found.not_understood)]
    return "\n".join(shown)
