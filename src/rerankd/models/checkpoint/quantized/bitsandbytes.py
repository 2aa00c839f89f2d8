"""bitsandbytes: 8-bit integers with a scale for each row (Dettmers et al., 2022), and blocks of 4-bit codes (Dettmers
et al., 2023).

Layout references: `functional.py` of bitsandbytes, and the quantizers for bitsandbytes in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.quantized.stored import Rows, Stored, modules_with, parts_of
from rerankd.models.checkpoint.tensors import Checkpoint

KINDS = ("nf4", "fp4")
STATE = "weight.quant_state.bitsandbytes__"
ROW_SCALE = 127
"""The integer for the largest absolute value of a row."""


@dataclass(frozen=True, slots=True)
class BitsAndBytes:
    """The formats of `load_in_8bit` and `load_in_4bit`."""

    description: str

    @classmethod
    def of(cls, config: Config) -> BitsAndBytes:
        """The format that `quantization_config` describes. Raises ModelError for unsupported settings."""
        if not config.flag("load_in_4bit") and not config.flag("_load_in_4bit"):
            return cls("bitsandbytes, 8 bits")
        config.require("bnb_4bit_quant_type", "fp4", *KINDS)
        kind = config.entries.get("bnb_4bit_quant_type", "fp4")
        return cls(f"bitsandbytes, 4 bits ({kind}{', double' if config.flag('bnb_4bit_use_double_quant') else ''})")

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        weights = {f"{module}.weight": _of_rows(checkpoint, module) for module in modules_with(checkpoint, "SCB")}
        for kind in KINDS:
            for module in modules_with(checkpoint, STATE + kind):
                weights[f"{module}.weight"] = _of_blocks(checkpoint, module, STATE + kind)
        return weights


def _of_rows(checkpoint: Checkpoint, module: str) -> Stored:
    """An 8-bit weight. Its `weight_format` is 0 for plain rows; other values are layouts for certain GPUs."""
    name, form = f"{module}.weight", f"{module}.weight_format"

    def opened() -> Rows:
        if form in checkpoint.names and checkpoint.read(form).any():
            raise ModelError("its layout is that of a certain GPU (`weight_format`)")
        weight, largest = checkpoint.read(name), checkpoint.read(f"{module}.SCB").float()
        if weight.dtype != torch.int8 or largest.shape != weight.shape[:1]:
            raise ModelError("it has no 8-bit integers with one scale for each row (`SCB`)")
        return lambda rows: weight[rows].float() * (largest[rows, None] / ROW_SCALE)

    parts = parts_of(checkpoint, module, "weight", "SCB", "weight_format")
    return Stored(parts, checkpoint.shape(name), opened)


def _of_blocks(checkpoint: Checkpoint, module: str, state_name: str) -> Stored:
    """A 4-bit weight: codes row after row, two in a byte, the first of them in the upper half of the byte."""
    state = _state(checkpoint, f"{module}.{state_name}")
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise ModelError(f"`{module}.{state_name}` in {checkpoint.folder} names no `shape` of a matrix.")

    def opened() -> Rows:
        codes = checkpoint.read(f"{module}.weight").contiguous().view(torch.uint8).flatten()
        values = checkpoint.read(f"{module}.weight.quant_map").float()
        block = _size(state, "blocksize")
        largest = _largest(checkpoint, module, state)
        if len(values) != 16 or 2 * len(codes) < prod(shape) or len(largest) * block < prod(shape):
            raise ModelError(f"{len(codes)} bytes and {len(largest)} blocks are too few for the shape {shape}")

        def read_rows(rows: slice) -> Tensor:
            start, stop = rows.start * shape[1], rows.stop * shape[1]
            pairs = codes[start // 2 : -(-stop // 2)]
            halves = torch.stack([pairs >> 4, pairs & 15], -1).flatten()[start % 2 :][: stop - start]
            weight = values[halves.int()] * largest[torch.arange(start, stop) // block]
            return weight.view(-1, shape[1])

        return read_rows

    tensors = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
    return Stored(parts_of(checkpoint, module, *tensors, state_name), tuple(shape), opened)


def _largest(checkpoint: Checkpoint, module: str, state: Mapping[str, Any]) -> Tensor:
    """The largest absolute value of each block, float32. With double quantisation, these values are codes too."""
    stored = checkpoint.read(f"{module}.weight.absmax").flatten()
    if f"{module}.weight.nested_absmax" not in checkpoint.names:
        if stored.dtype == torch.uint8:
            raise ModelError("its quantisation is double (8-bit `absmax`), but `nested_absmax` is missing")
        return stored.float()
    values = checkpoint.read(f"{module}.weight.nested_quant_map").float()
    scales = checkpoint.read(f"{module}.weight.nested_absmax").float()
    blocks = torch.arange(len(stored)) // _size(state, "nested_blocksize")
    return values[stored.int()] * scales[blocks] + float(state.get("nested_offset", 0.0))


def _state(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """The JSON object that a tensor of bytes holds."""
    try:
        state = json.loads(bytes(checkpoint.read(name).tolist()))
    except (ValueError, TypeError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise ModelError(f"`{name}` in {checkpoint.folder} is not a JSON object.")
    return state


def _size(state: Mapping[str, Any], name: str) -> int:
    size = state.get(name)
    if type(size) is not int or size < 1:
        raise ModelError(f"its `{name}` is missing or not a size")
    return size
