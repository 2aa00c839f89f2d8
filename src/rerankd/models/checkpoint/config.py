"""A checkpoint's config.json, with the keys of old and of new transformers releases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from rerankd.core import ModelError
from rerankd.layers.scaling import Linear, Llama3, Ntk, Rope, Scaling, Yarn
from rerankd.models.checkpoint.json_files import read_json, shown

T = TypeVar("T", int, float, str, bool)

MOST = 2**31 - 1
"""Upper limit of every size and count of a model."""
MOST_LAYERS = 1000
"""Upper limit of the number of layers."""
ROTARY_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


@dataclass(frozen=True, slots=True)
class Config:
    """Typed access to the entries of a configuration. Methods raise ModelError for a missing or invalid entry.

    entries: the JSON object
    source: the file (and section) for errors
    """

    entries: Mapping[str, Any]
    source: str

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The entry `name`, which must be of type `kind`. A float must be finite, and may be written as an integer."""
        value = self.entries.get(name, default)
        if value is None:
            raise ModelError(f"{self.source} has no `{name}`, which this architecture needs.")
        if kind is float and type(value) is int and abs(value) <= 2**53:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise self.wrong(name, f"must be {kind.__name__}")
        return value

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A size, a count or an id: an integer of at least `least`. If there is a default, null counts as missing."""
        value = default if default is not None and self.entries.get(name) is None else self.get(name, int)
        if not least <= value <= MOST:
            raise self.wrong(name, f"must be an integer from {least} to {MOST}")
        return value

    def layers(self, name: str = "num_hidden_layers") -> int:
        """A number of layers. The limit is low, because layers are specified before any weight is read."""
        value = self.size(name)
        if value > MOST_LAYERS:
            raise self.wrong(name, f"must be an integer from 1 to {MOST_LAYERS}")
        return value

    def epsilon(self, name: str, default: float) -> float:
        """The epsilon of a norm, which is added to the variance."""
        value = self.get(name, float, default)
        if not 0 <= value < 1:
            raise self.wrong(name, "must be at least 0 and less than 1")
        return value

    def flag(self, name: str) -> bool | None:
        """A boolean entry; None if the entry is null or missing."""
        return None if self.entries.get(name) is None else self.get(name, bool)

    def section(self, name: str) -> Config:
        """A nested configuration, such as `text_config`."""
        value = self.entries.get(name)
        if value is None:
            raise ModelError(f"{self.source} has no section `{name}`, which this architecture needs.")
        if not isinstance(value, Mapping):
            raise self.wrong(name, "must be an object")
        return Config(value, f"{self.source} ({name})")

    def require(self, name: str, *allowed: Any) -> None:
        """Raise ModelError unless the entry `name` has one of the `allowed` values, the first of which is the default.

        For settings that change the score and that this implementation does not support.
        """
        value = self.entries.get(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise ModelError(f"{self.source}: `{name}` is {shown(value)}; only {choices} is supported.")

    def wrong(self, name: str, rule: str) -> ModelError:
        """The error for an entry that breaks `rule`, such as `must be a list`."""
        return ModelError(f"{self.source}: `{name}` {rule}, not {shown(self.entries.get(name))}.")

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names of the model's classes in transformers; may be empty."""
        names = self.entries.get("architectures")
        if names is None:
            return ()
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise self.wrong("architectures", "must be a list of class names")
        return tuple(names)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The names of a classification head's labels in order; None if the configuration has no `id2label`."""
        labels = self.entries.get("id2label")
        if labels is None:
            return None
        names = {str(key): name for key, name in labels.items()} if isinstance(labels, Mapping) else {}
        keys = [str(i) for i in range(len(names))]
        if not names or set(names) != set(keys) or not all(isinstance(name, str) for name in names.values()):
            raise self.wrong("id2label", 'must be an object of names such as {"0": "LABEL_0"}')
        return tuple(names[key] for key in keys)

    @property
    def num_labels(self) -> int:
        """Number of labels (rows) of a classification head, by the rule of transformers."""
        names = self.label_names
        return self.size("num_labels", 2) if names is None else len(names)

    def rotary(self) -> Mapping[str, Any]:
        """Parameters of the rotary embedding, by their names in transformers 5 (`rope_parameters`)."""
        return {"rope_type": "default"} | _rotary(self)

    def rope(self) -> Rope:
        """The rotary embedding that the configuration describes. Raises ModelError for an unsupported scaling.

        Source: `modeling_rope_utils.py` of transformers. `dynamic` scaling is ignored, because it has no effect up to
        `max_position_embeddings` tokens, and no prompt is longer.
        """
        rope = Config(self.rotary(), f"{self.source} (rotary)")
        if nested := [name for name, value in rope.entries.items() if isinstance(value, Mapping)]:
            raise ModelError(
                f"{self.source}: `rope_parameters` (or `rope_scaling`) has separate values for {shown(nested[0])}; "
                "only one set of values, for all layers, is supported."
            )
        theta = rope.get("rope_theta", float)
        if not 1 < theta < 1e30:
            raise rope.wrong("rope_theta", "must be more than 1 and less than 1e30")
        partial = rope.entries.get("partial_rotary_factor", self.entries.get("partial_rotary_factor"))
        if partial not in (None, 1):
            raise ModelError(f"{self.source}: `partial_rotary_factor` is {shown(partial)}; only 1 is supported.")
        return Rope(theta, self._scaling(rope, rope.get("rope_type", str)))

    def _scaling(self, rope: Config, kind: str) -> Scaling | None:
        def positive(name: str, default: float | None = None) -> float:
            value = default if default is not None and rope.entries.get(name) is None else rope.get(name, float)
            if value <= 0:
                raise rope.wrong(name, "must be more than 0")
            return value

        def original() -> int:
            if self.entries.get("original_max_position_embeddings") is not None:
                return self.size("original_max_position_embeddings")
            return rope.size("original_max_position_embeddings", self.size("max_position_embeddings"))

        match kind:
            case "default" | "mrope":
                return None
            case "dynamic":
                positive("factor")
                return None
            case "linear":
                return Linear(positive("factor"))
            case "ntk":
                rope.require("mixed_b", None)
                return Ntk(positive("factor"))
            case "llama3":
                low, high = positive("low_freq_factor"), positive("high_freq_factor")
                if low >= high:
                    raise rope.wrong("low_freq_factor", f"must be less than `high_freq_factor` ({high})")
                return Llama3(positive("factor"), low, high, original())
            case "yarn":
                original_positions = original()
                factor = positive("factor", self.size("max_position_embeddings") / original_positions)
                has_factor = rope.entries.get("attention_factor") is not None
                mscale = [positive(name) for name in ("mscale", "mscale_all_dim") if rope.entries.get(name) is not None]
                return Yarn(
                    factor=factor,
                    original_positions=original_positions,
                    attention_factor=positive("attention_factor") if has_factor else None,
                    mscale=(mscale[0], mscale[1]) if len(mscale) == 2 else None,
                    beta_fast=positive("beta_fast", 32.0),
                    beta_slow=positive("beta_slow", 1.0),
                    truncate=rope.flag("truncate") is not False,
                )
        raise ModelError(
            f"{self.source}: `rope_type` is {shown(kind)}, a scaling that is not supported; default, linear, dynamic, "
            "ntk, yarn and llama3 are."
        )


def read_config(folder: Path, overrides: Mapping[str, Any]) -> Config:
    """Read config.json of a folder. `overrides` replace its entries; nested sections are merged.

    Raises ModelError.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise adapter_error(folder)
    entries = read_json(path)
    try:
        return Config(_merged(entries, overrides, str(path)), str(path))
    except RecursionError:
        raise ModelError(f"The overrides of {path} are nested too deeply.") from None


def adapter_error(folder: Path) -> ModelError:
    """The error for a folder that holds a PEFT adapter instead of a model."""
    return ModelError(
        f"{folder} holds a PEFT adapter (adapter_config.json), which is not supported; merge it into its base model "
        "(merge_and_unload, then save_pretrained) and serve that folder."
    )


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], source: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(old, value, source) if nested else value  # type: ignore[arg-type]
    if "num_labels" in over and "id2label" not in over:
        # The number of labels is taken from `id2label` if there is one, which would undo the override.
        merged.pop("id2label", None)
    if any(key in over for key in ROTARY_KEYS):
        rope = _rotary(Config(base, source)) | _rotary(Config(over, "The override"), null={"rope_type": "default"})
        merged = {key: value for key, value in merged.items() if key not in ROTARY_KEYS}
        merged["rope_parameters"] = rope
    return merged


def _rotary(config: Config, null: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The rotary parameters that a configuration has, by their names in transformers 5.

    null: the parameters that a section with the value null stands for
    """
    parts: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        section = config.entries.get(name, {})
        if section is not None and not isinstance(section, Mapping):
            raise config.wrong(name, "must be an object or null")
        part = dict(null if section is None else section)
        if "type" in part:
            part.setdefault("rope_type", part.pop("type"))
        parts |= part
    if "rope_theta" in config.entries:
        parts.setdefault("rope_theta", config.entries["rope_theta"])
    return parts
