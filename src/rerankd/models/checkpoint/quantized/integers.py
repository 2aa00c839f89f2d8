"""GPTQ (Frantar et al., 2022) and AWQ (Lin et al., 2023): groups of unsigned integers with scales and zero points.

Layout references: the linear layers of GPTQModel and AutoAWQ. A weight is stored transposed, [inputs, outputs].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.quantized.grid import Grid, unpacked
from rerankd.models.checkpoint.quantized.stored import Rows, Stored, modules_with, parts_of
from rerankd.models.checkpoint.tensors import Checkpoint

GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""The number to add to the stored zero points of each format."""
AWQ_FORMATS = ("gemm", "exllama")
"""Versions with the packing of AutoAWQ's GEMM. Other versions pack along the inputs of a weight."""
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""The places in a word of AWQ of eight neighbouring outputs."""
PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ with 2, 4 or 8 bits.

    group: number of inputs in a group; -1 for all inputs
    offset: number to add to each stored zero point
    """

    bits: int
    group: int
    offset: int

    @classmethod
    def of(cls, config: Config) -> Gptq:
        """The format that `quantization_config` describes. Raises ModelError for unsupported settings."""
        config.require("bits", 4, 8, 2)
        config.require("pack_dtype", "int32", None)
        config.require("is_marlin_format", False, None)
        name = config.entries.get("checkpoint_format") or config.entries.get("format") or "gptq"
        if name not in GPTQ_FORMATS:
            key = "checkpoint_format" if config.entries.get("checkpoint_format") else "format"
            raise config.wrong(key, f"must be {' or '.join(GPTQ_FORMATS)}, the supported formats")
        return cls(config.get("bits", int, 4), _group_size(config), GPTQ_FORMATS[str(name)])

    @property
    def description(self) -> str:
        """See `Scheme`."""
        return f"GPTQ, {self.bits} bits, {_describe_groups(self.group)}"

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        return {f"{module}.weight": self._stored(checkpoint, module) for module in modules_with(checkpoint, "qweight")}

    def _stored(self, checkpoint: Checkpoint, module: str) -> Stored:
        words, outputs = checkpoint.shape(f"{module}.qweight")
        bits = self.bits
        order = f"{module}.g_idx"
        if order in checkpoint.names:
            # GPTQModel can quantise some modules to other bits; they follow from the number of inputs in `g_idx`.
            (inputs,) = checkpoint.shape(order)
            bits = next((bits for bits in (2, 4, 8) if words * 32 == inputs * bits), bits)
        inputs = words * 32 // bits

        def opened() -> Rows:
            packed = checkpoint.read(f"{module}.qweight")
            # GPTQModel adds the offset to all numbers of a word in one addition, so that an overflow carries into the
            # next number; the same is done here.
            step = sum(self.offset << shift for shift in range(0, 32, bits))
            ones = torch.tensor(step - (1 << 32) if step >> 31 else step, dtype=torch.int32)
            zeros = unpacked(checkpoint.read(f"{module}.qzeros") + ones, bits)
            groups = checkpoint.read(order) if order in checkpoint.names else _consecutive_groups(inputs, self.group)
            scale, zero = _grids(checkpoint.read(f"{module}.scales"), zeros, outputs, groups)
            return lambda rows: (unpacked(packed[:, rows].T, bits) - zero(rows)) * scale(rows)

        return Stored(parts_of(checkpoint, module, *PARTS), (outputs, inputs), opened)


@dataclass(frozen=True, slots=True)
class Awq:
    """AWQ with 4 bits in the packing of AutoAWQ's GEMM."""

    group: int

    @classmethod
    def of(cls, config: Config) -> Awq:
        """The format that `quantization_config` describes. Raises ModelError for unsupported settings."""
        config.require("bits", 4)
        version = str(config.entries.get("version") or config.entries.get("format") or "gemm").lower()
        if version not in AWQ_FORMATS:
            raise config.wrong("version", f"must be {' or '.join(AWQ_FORMATS)}, the supported packing")
        return cls(_group_size(config))

    @property
    def description(self) -> str:
        """See `Scheme`."""
        return f"AWQ, 4 bits, {_describe_groups(self.group)}"

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        return {f"{module}.weight": self._stored(checkpoint, module) for module in modules_with(checkpoint, "qweight")}

    def _stored(self, checkpoint: Checkpoint, module: str) -> Stored:
        inputs, words = checkpoint.shape(f"{module}.qweight")
        outputs = words * 8

        def opened() -> Rows:
            packed = checkpoint.read(f"{module}.qweight")
            zeros = _unpacked_awq(checkpoint.read(f"{module}.qzeros"))
            groups = _consecutive_groups(inputs, self.group)
            scale, zero = _grids(checkpoint.read(f"{module}.scales"), zeros, outputs, groups)

            def read_rows(rows: slice) -> Tensor:
                first, last = rows.start // 8, -(-rows.stop // 8)
                values = _unpacked_awq(packed[:, first:last])[:, rows.start - first * 8 : rows.stop - first * 8]
                return (values.T - zero(rows)) * scale(rows)

            return read_rows

        return Stored(parts_of(checkpoint, module, *PARTS), (outputs, inputs), opened)


def _unpacked_awq(words: Tensor) -> Tensor:
    """Unpack the 4-bit integers of AWQ's words in the order of outputs: int32 [n, words] -> int32 [n, words * 8]."""
    return unpacked(words, 4).view(*words.shape, 8)[..., AWQ_ORDER].flatten(-2)


def _grids(scales: Tensor, zeros: Tensor, outputs: int, groups: Tensor) -> tuple[Grid, Grid]:
    """Grids of the scales and the zero points, which are both [number of groups, outputs]."""
    if scales.shape != zeros.shape:
        raise ModelError(f"it has scales of shape {list(scales.shape)} and zero points of shape {list(zeros.shape)}")
    return Grid.of_groups(scales.T, outputs, groups), Grid.of_groups(zeros.T, outputs, groups)


def _consecutive_groups(inputs: int, group: int) -> Tensor:
    """The group of each input, int64 [inputs], if the inputs of a group are consecutive."""
    return torch.arange(inputs) // (inputs if group == -1 else group)


def _group_size(config: Config) -> int:
    return -1 if config.entries.get("group_size", -1) == -1 else config.size("group_size")


def _describe_groups(group: int) -> str:
    return "one group" if group == -1 else f"groups of {group}"
