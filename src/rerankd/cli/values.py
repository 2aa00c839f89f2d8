"""How the values of options are read."""

from __future__ import annotations

import json
import math
from typing import Any

import typer

MOST_CHARACTERS = 20
"""More than any number of tokens has."""


def token_count(text: str) -> int | None:
    """vLLM's human-readable integers: 4096, 4k (4,000), 4K (4,096), 25.6k; -1 or auto for the default."""
    if text in ("auto", "-1"):
        return None
    if len(text) > MOST_CHARACTERS or not text.isascii():
        raise typer.BadParameter(f"{text[:MOST_CHARACTERS]!r} is not a number of tokens, such as 4096 or 8k")
    scales = {"k": 1000, "K": 1 << 10, "m": 1000**2, "M": 1 << 20}
    try:
        count = float(text[:-1]) * scales[text[-1]] if text[-1:] in scales else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number of tokens, such as 4096 or 8k") from None
    if not math.isfinite(count) or count < 1 or count != int(count):
        raise typer.BadParameter(f"{text!r} is not a whole number of tokens, at least 1")
    return int(count)


def implementation(text: str) -> str:
    """auto, native or transformers; the names that vLLM and SGLang have for their own stand for native."""
    name = {"vllm": "native", "sglang": "native"}.get(text, text)
    if name not in ("auto", "native", "transformers"):
        raise typer.BadParameter(f"{text!r} is not supported; use auto, native or transformers")
    return name


STORED_FORMATS = ("gptq", "gptq_marlin", "awq", "awq_marlin", "compressed-tensors", "gguf")
"""Names of formats in which weights are stored; a checkpoint in one of them is read as its configuration says."""


def quantization(text: str) -> str | None:
    """auto, int8, fp8, or a way to say none, as vLLM's names of what a checkpoint says by itself are."""
    if text.lower() in ("none", "null", *STORED_FORMATS):
        return None
    if text not in ("auto", "int8", "fp8"):
        raise typer.BadParameter(f"{text!r} is not supported; use auto, int8 or fp8, or leave the flag out")
    return text


def strings(text: str) -> tuple[str, ...]:
    """A JSON list of strings."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise typer.BadParameter(f"{text!r} is not a JSON list of strings, such as '[\"https://example.org\"]'")
    return tuple(value)


def processor_kwargs(text: str) -> dict[str, Any]:
    """vLLM's `--mm-processor-kwargs`, as fields of `media.sizing.Sizing`."""
    from pydantic import ValidationError

    from rerankd.schemas.processor_kwargs import ProcessorKwargs
    from rerankd.schemas.wording import first_problem

    try:
        kwargs = ProcessorKwargs.model_validate(json_object(text))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise typer.BadParameter(f"{place}: {problem}") from None
    for name in kwargs.without_effect():
        raise typer.BadParameter(f"{name!r} has no effect here; min_pixels, max_pixels, fps and max_frames have")
    return kwargs.values()


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{text!r:.200} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r:.200} is not a JSON object")
    return value
