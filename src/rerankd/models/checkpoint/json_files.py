"""The JSON files of a checkpoint. This file imports no torch, so that prompts can be made without it."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from rerankd.core import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a checkpoint must have."""
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file that a checkpoint must have."""
    value = read_any_json(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelError(f"{path} must hold a JSON list of objects.")
    return value


def read_any_json(path: Path) -> Any:
    """What a JSON file that a checkpoint must have holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; is it a model folder?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    except RecursionError:
        raise ModelError(f"{path} cannot be read: it is nested too deeply.") from None


def shown(value: Any) -> str:
    """A value as an error names it: on one line, and not all of a long one."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
