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
        inspection = look(plan(LoadOptions(model, **loading), weights=False))
    except RerankdError as error:
        print(f"rerankd: error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(json.dumps(dataclasses.asdict(inspection), ensure_ascii=False, indent=2) if as_json else _text(inspection))


def _text(inspection: Inspection) -> str:
    limit = f"{inspection.max_tokens} tokens of one prompt (positions: {inspection.positions})"
    precision = inspection.dtype + (f", {inspection.quantization} linear layers" if inspection.quantization else "")
    lines = {
        "model": inspection.model,
        "folder": inspection.folder,
        "architecture": inspection.architecture,
        "recipe": f"{inspection.recipe}: {inspection.why}",
        "head": inspection.head,
        "tokens": ", ".join(f"{name!r} is {token}" for name, token in inspection.tokens.items()),
        "activation": inspection.activation,
        "template": inspection.template,
        "instruction": inspection.default_instruction,
        "limit": limit,
        "device": inspection.device,
        "ranks": f"{inspection.tensor_parallel_size}, each a part of every layer"
        if inspection.tensor_parallel_size > 1
        else "",
        "replicas": f"{inspection.data_parallel_size}, each the whole model"
        if inspection.data_parallel_size > 1
        else "",
        "dtype": precision,
        "weights": inspection.stored,
        "backend": inspection.backend,
    }
    shown = [f"{name + ':':<14}{value}" for name, value in lines.items() if value]
    for prompt in inspection.prompts:
        shown += ["prompt:", *(f"    {line}" for line in prompt.split("\n"))]
    if inspection.other_files:
        shown += ["other files, not needed:", *(f"    {name}" for name in inspection.other_files)]
    if inspection.not_understood:
        shown += ["not understood:", *(f"    {entry}" for entry in inspection.not_understood)]
    return "\n".join(shown)
