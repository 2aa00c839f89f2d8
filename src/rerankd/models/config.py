"""A checkpoint's config.json, with the keys of old and new transformers releases read alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rerankd.core import ModelError

T = TypeVar("T", int, float, str, bool)


@dataclass(frozen=True, slots=True)
class Config:
    """Typed access to a configuration; a missing or mistyped entry is a ModelError that names it."""

    entries: Mapping[str, Any]
    source: str

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        value = self.entries.get(name, default)
        if value is None:
            raise ModelError(f"{self.source} has no `{name}`, which this architecture needs.")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ModelError(f"{self.source}: `{name}` must be {kind.__name__}, not {value!r}.")
        return value

    def section(self, name: str) -> Config:
        """A nested configuration, such as `text_config`."""
        value = self.entries.get(name)
        if not isinstance(value, Mapping):
            raise ModelError(f"{self.source} has no section `{name}`, which this architecture needs.")
        return Config(value, f"{self.source} ({name})")

    def require(self, name: str, *allowed: Any) -> None:
        """Refuse a configuration that asks for something this implementation would silently not do."""
        value = self.entries.get(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ModelError(f"{self.source}: `{name}` is {value!r}; only {choices} is supported.")

    @property
    def architectures(self) -> tuple[str, ...]:
        return tuple(self.entries.get("architectures") or ())

    @property
    def num_labels(self) -> int:
        """Rows of a classification head, as transformers derives it."""
        labels = self.entries.get("id2label")
        return len(labels) if isinstance(labels, Mapping) else self.get("num_labels", int, 2)

    def rotary(self) -> Mapping[str, Any]:
        """Rotary parameters, from `rope_parameters` or from `rope_theta` and `rope_scaling`."""
        rope = dict(self.entries.get("rope_scaling") or {}) | dict(self.entries.get("rope_parameters") or {})
        if "rope_theta" not in rope:
            rope["rope_theta"] = self.get("rope_theta", float)
        rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
        return rope

    def rope_theta(self) -> float:
        """Theta of a plain rotary embedding; a scaled one is refused, since it would change every score."""
        rope = self.rotary()
        if rope["rope_type"] not in ("default", "mrope"):
            raise ModelError(
                f"{self.source}: rotary scaling {rope['rope_type']!r} is not supported; only plain rotary is."
            )
        return float(rope["rope_theta"])


def read_config(folder: Path, overrides: Mapping[str, Any]) -> Config:
    """config.json of `folder`, with `overrides` laid over its entries (nested sections are merged)."""
    return Config(_merged(read_json(folder / "config.json"), overrides), str(folder / "config.json"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a checkpoint must have."""
    value = _read(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file that a checkpoint must have."""
    value = _read(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelError(f"{path} must hold a JSON list of objects.")
    return value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; is it a model folder?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if nested else value  # type: ignore[arg-type]
    return merged
