"""GPTQ (Frantar et al., 2022) and AWQ (Lin et al., 2023): groups of unsigned integers with scales and zero points.

Layout references: GPTQModel's and AutoAWQ's linear layers. A weight is stored transposed, [inputs, outputs].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.quantized.grid import Grid, unpacked
from rerankd.models.checkpoint.quantized.stored import Rows, Stored, modules_with, parts_of
from rerankd.models.checkpoint.weights import Checkpoint

GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""The offset of the zero points that each format stores."""
AWQ_FORMATS = ("gemm", "exllama")
"""Versions with the packing of AutoAWQ's GEMM; the others pack along the other side of a weight."""
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]
"""The place of each of eight neighbours in a word of AWQ."""
PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ with 2, 4 or 8 bits.

    group: inputs of a group; all for -1
    offset: added to each stored zero point
    """

    bits: int
    group: int
    offset: int

    @classmethod
    def of(cls, config: Config) -> Gptq:
        """As `quantization_config` says. ModelError for another format than GPTQ's own two."""
        config.require("bits", 4, 8, 2)
        config.require("pack_dtype", "int32", None)
        config.require("is_marlin_format", False, None)
        name = config.entries.get("checkpoint_format") or config.entries.get("format") or "gptq"
        if name not in GPTQ_FORMATS:
            key = "checkpoint_format" if config.entries.get("checkpoint_format") else "format"
            raise config.wrong(key, f"must be {' or '.join(GPTQ_FORMATS)}, the formats that are read")
        return cls(config.get("bits", int, 4), _group(config), GPTQ_FORMATS[str(name)])

    @property
    def said(self) -> str:
        """See `Scheme`."""
        return f"GPTQ, {self.bits} bits, {_groups(self.group)}"

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        return {f"{module}.weight": self._stored(checkpoint, module) for module in modules_with(checkpoint, "qweight")}

    def _stored(self, checkpoint: Checkpoint, module: str) -> Stored:
        words, outputs = checkpoint.shape(f"{module}.qweight")
        bits = self.bits
        order = f"{module}.g_idx"
        if order in checkpoint.names:
            # GPTQModel may give some modules other bits; the order has an entry for each input.
            (inputs,) = checkpoint.shape(order)
            bits = next((bits for bits in (2, 4, 8) if words * 32 == inputs * bits), bits)
        inputs = words * 32 // bits

        def opened() -> Rows:
            packed = checkpoint.read(f"{module}.qweight")
            # As GPTQModel has it: to all the numbers of a word at once, so that one's overflow reaches the next.
            step = sum(self.offset << shift for shift in range(0, 32, bits))
            ones = torch.tensor(step - (1 << 32) if step >> 31 else step, dtype=torch.int32)
            zeros = unpacked(checkpoint.read(f"{module}.qzeros") + ones, bits)
            groups = checkpoint.read(order) if order in checkpoint.names else _in_order(inputs, self.group)
            scale, zero = _grids(checkpoint.read(f"{module}.scales"), zeros, outputs, groups)
            return lambda rows: (unpacked(packed[:, rows].T, bits) - zero(rows)) * scale(rows)

        return Stored(parts_of(checkpoint, module, *PARTS), (outputs, inputs), opened)


@dataclass(frozen=True, slots=True)
class Awq:
    """AWQ with 4 bits in the packing of AutoAWQ's GEMM."""

    group: int

    @classmethod
    def of(cls, config: Config) -> Awq:
        """As `quantization_config` says. ModelError for another packing."""
        config.require("bits", 4)
        version = str(config.entries.get("version") or config.entries.get("format") or "gemm").lower()
        if version not in AWQ_FORMATS:
            raise config.wrong("version", f"must be {' or '.join(AWQ_FORMATS)}, the packing that is read")
        return cls(_group(config))

    @property
    def said(self) -> str:
        """See `Scheme`."""
        return f"AWQ, 4 bits, {_groups(self.group)}"

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """See `Scheme`."""
        return {f"{module}.weight": self._stored(checkpoint, module) for module in modules_with(checkpoint, "qweight")}

    def _stored(self, checkpoint: Checkpoint, module: str) -> Stored:
        inputs, words = checkpoint.shape(f"{module}.qweight")
        outputs = words * 8

        def opened() -> Rows:
            packed = checkpoint.read(f"{module}.qweight")
            zeros = _neighbours(checkpoint.read(f"{module}.qzeros"))
            scale, zero = _grids(checkpoint.read(f"{module}.scales"), zeros, outputs, _in_order(inputs, self.group))

            def rows(chosen: slice) -> Tensor:
                first, last = chosen.start // 8, -(-chosen.stop // 8)
                values = _neighbours(packed[:, first:last])[:, chosen.start - first * 8 : chosen.stop - first * 8]
                return (values.T - zero(chosen)) * scale(chosen)

            return rows

        return Stored(parts_of(checkpoint, module, *PARTS), (outputs, inputs), opened)


def _neighbours(words: Tensor) -> Tensor:
    """The integers of AWQ's words in their order: int32 [n, words] -> [n, words * 8]."""
    return unpacked(words, 4).view(*words.shape, 8)[..., AWQ_ORDER].flatten(-2)


def _grids(scales: Tensor, zeros: Tensor, outputs: int, groups: Tensor) -> tuple[Grid, Grid]:
    """Scales and zero points, both [number of groups, outputs], as grids of the weight."""
    if scales.shape != zeros.shape:
        raise ModelError(f"scales of shape {list(scales.shape)} and zero points of shape {list(zeros.shape)}")
    return Grid.of_groups(scales.T, outputs, groups), Grid.of_groups(zeros.T, outputs, groups)


def _in_order(inputs: int, group: int) -> Tensor:
    return torch.arange(inputs) // (inputs if group == -1 else group)


def _group(config: Config) -> int:
    return -1 if config.entries.get("group_size", -1) == -1 else config.size("group_size")


def _groups(group: int) -> str:
    return "one group" if group == -1 else f"groups of {group}"
