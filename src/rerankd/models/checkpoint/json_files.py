"""Reading the JSON files of a checkpoint. This module imports no torch, because prompts are built without torch."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from rerankd.core import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Read a required file that holds a JSON object. Raises ModelError."""
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a required file that holds a JSON list of objects. Raises ModelError."""
    value = read_any_json(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelError(f"{path} must hold a JSON list of objects.")
    return value


def read_any_json(path: Path) -> Any:
    """Read a required JSON file. Raises ModelError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; is it a model folder?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None
    except RecursionError:
        raise ModelError(f"{path} cannot be read: the file is nested too deeply.") from None


def shown(value: Any) -> str:
    """A value for an error message: on one line, and shortened if long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
