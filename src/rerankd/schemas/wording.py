"""What pydantic found wrong, in the words of our errors: pydantic's own name Python's types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rerankd.core.counts import counted

KINDS = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "finite_number": "a finite number",
}
"""The beginning of the name of a type of errors -> the value that is wanted."""


def first_problem(error: ValidationError, field: str = "") -> tuple[str, str]:
    """The place of the first error, in `field`, and its problem as a clause without a full stop."""
    first = error.errors(include_url=False)[0]
    return path_of(first["loc"], field), problem_of(first)


def path_of(location: tuple[int | str, ...], field: str = "") -> str:
    """The place of an error in `field`, with the names that errors of images have: `documents[1].content[0]`."""
    path = field
    for index, step in enumerate(location):
        if isinstance(step, int):
            is_part = location[index - 1 : index] == ("<parts>",) and "content" not in location[index - 2 : index - 1]
            path += f".content[{step}]" if is_part else f"[{step}]"
        elif not step.startswith("<"):  # else a union's tag, see schemas/contents.py
            path += f".{step}" if path else step
    return path


def problem_of(details: Mapping[str, Any]) -> str:
    """The problem of one error, as `ValidationError.errors` gives it: a clause without a full stop."""
    kind, message = details["type"], details["msg"].removeprefix("Value error, ").rstrip(".")
    if kind == "missing":
        return "is required"
    if kind == "part" and isinstance(details["input"], dict) and isinstance(given := details["input"].get("type"), str):
        return f"{message}, not {given[:50]!r}"
    if kind in ("too_short", "too_long"):
        bound, count = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"must have {bound} {counted(details['ctx'][count], 'element')}"
    if kind == "int_from_float":
        return "must be a whole number"
    for beginning, wanted in KINDS.items():
        if re.fullmatch(rf"{beginning}(_type|_parsing|_parsing_size|_attributes_type)?", kind):
            return f"must be {wanted}"
    message = message.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return re.sub(r"^(Input|String|Number) should ", "must ", message)
