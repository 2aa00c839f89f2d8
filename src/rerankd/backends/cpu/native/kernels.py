"""The operations of the kernels, as functions of tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rerankd.backends.cpu.native import descriptors
from rerankd.backends.cpu.native.descriptors import EPILOGUES, NO_MATRIX, address, matrix
from rerankd.backends.cpu.native.execution import Execution
from rerankd.backends.cpu.native.library import load_library
from rerankd.backends.cpu.native.units import Unit
from rerankd.backends.cpu.rows import COLUMN_BLOCK_BYTES, BlockedTensor, Rows
from rerankd.backends.cpu.runs import runs_of
from rerankd.layers.layout import AttentionLayout
from rerankd.layers.rotary import Rotation

_LANES = 16


class QuantizedRows(NamedTuple):
    """Rows in 8 or 16 bits, as GEMMs read them: x = (code - zero) * step.

    codes: [rows, width], uint8 from 0 to 255, or by units of ARM from -128 to 127; or int16, with zeros of 0
    steps, zeros: float32 [rows]
    """

    codes: BlockedTensor
    steps: Tensor
    zeros: Tensor


class PackedWeight(NamedTuple):
    """A weight [outputs, inputs] in the dtype of rows, or in 8 or 16 bits, in the order that GEMMs read.

    scales, sums: float32 [outputs], of a weight in 8 or 16 bits: the step of an output's codes, and in 8 bits their sum
    """

    packed: Tensor
    scales: Tensor | None = None
    sums: Tensor | None = None


class Kernels(Execution):
    """The operations. Tensors lie on the CPU, contiguous in their last dimension, in the unit's dtype unless noted.

    largest_weight: the largest magnitude of an 8-bit weight
    largest_sum: the largest sum of the positive 8-bit weights, and of the negative ones, of an output at the inputs
        i, i + 1, i + 4 and i + 5, for each i of 0 or 2 modulo 8, whose products are added in 16 bits; 0 for any sum
    largest_half: the largest magnitude of a row's 16-bit codes; 0 where rows in the unit's dtype are as fast
    """

    def __init__(self, library: ctypes.CDLL, unit: Unit) -> None:
        """KernelsError for a library of another version."""
        super().__init__(library, unit)
        self.dtype = unit.dtype
        self.block_columns = COLUMN_BLOCK_BYTES // unit.dtype.itemsize
        self.largest_weight: int = library.rerankd_largest_weight(unit.number)
        self.largest_sum: int = library.rerankd_largest_sum(unit.number)
        self.largest_half: int = library.rerankd_largest_half(unit.number)

    @classmethod
    def load(cls, dtype: torch.dtype) -> Kernels | None:
        """The kernels for rows of a dtype, or None where none were built, or the processor lacks the instructions.

        KernelsError for a library that was compiled from other sources than those beside it, or for another version of
        the Python code.
        """
        loaded = load_library(dtype)
        return None if loaded is None else cls(*loaded)

    @staticmethod
    def fit(*widths: int) -> bool:
        """Whether rows of these widths fill whole registers."""
        return all(width % _LANES == 0 for width in widths)

    def fit_blocked(self, width: int) -> bool:
        """Whether rows of this width fill whole column blocks, and so are passed on as a `BlockedTensor`."""
        return width % self.block_columns == 0

    @staticmethod
    def fit_gemm(outputs: int, inputs: int) -> bool:
        """Whether `gemm` supports a weight of this shape."""
        return inputs % 64 == 0 and outputs % 32 == 0

    def fit_attention(self, head_dim: int) -> bool:
        """Whether `attention` supports heads of this size."""
        return head_dim % self.block_columns == 0

    def empty_rows(self, count: int, width: int) -> Rows:
        """Rows without values, in the layout that GEMMs read and write."""
        if self.fit_blocked(width):
            return BlockedTensor.empty(count, width, self.dtype, self._acquire)
        return torch.empty(count, width, dtype=self.dtype)

    def to_blocked(self, x: Rows) -> BlockedTensor:
        """x [rows, width] in the blocked layout: x itself, or a copy."""
        if isinstance(x, BlockedTensor):
            return x
        out = BlockedTensor.empty(len(x), x.shape[1], self.dtype, self._acquire)
        self._compute(descriptors.to_blocked(*x.shape, *matrix(x), *matrix(out)), (x,), (out,))
        return out

    def index_select(self, x: Rows, rows: Tensor) -> Rows:
        """A copy of the rows of x, of any dtype, with indices `rows` (int64, each below len(x))."""
        count, width = len(rows), x.shape[1]
        out: Rows
        if isinstance(x, BlockedTensor):
            out = BlockedTensor.empty(count, width, x.dtype, self._acquire)
            segments, size = width * x.dtype.itemsize // COLUMN_BLOCK_BYTES, COLUMN_BLOCK_BYTES
            source = x.address, COLUMN_BLOCK_BYTES, x.block_stride
            target = out.address, COLUMN_BLOCK_BYTES, out.block_stride
        else:
            out = torch.empty(count, width, dtype=x.dtype)
            segments, size = 1, width * x.itemsize
            source, target = (address(x), size, 0), (address(out), size, 0)
        operation = descriptors.index_select(count, address(rows), segments, size, *source, *target)
        self._compute(operation, (x, rows), (out,))
        return out

    def quantize(self, x: Rows, halves: bool = False) -> QuantizedRows:
        """x [rows, width] in 8 bits, or in 16 if `halves`, each row over its own range; the weight has as many."""
        rows, width = x.shape
        codes = BlockedTensor.empty(rows, width, torch.int16 if halves else torch.uint8, self._acquire)
        steps, zeros = torch.empty(rows), torch.empty(rows)
        operation = descriptors.quantize(
            rows, width, *matrix(x), codes.address, codes.block_stride, address(steps), address(zeros), halves
        )
        self._compute(operation, (x,), (codes, steps, zeros))
        return QuantizedRows(codes, steps, zeros)

    def rms_norm(self, x: Rows, weight: Tensor, eps: float) -> Rows:
        """x / sqrt(mean(x^2) + eps) * weight for x [rows, width]."""
        rows, width = x.shape
        out = self.empty_rows(rows, width)
        operation = descriptors.rms_norm(rows, width, *matrix(x), address(weight), eps, *matrix(out))
        self._compute(operation, (x, weight), (out,))
        return out

    def norm_rope(self, x: Rows, weight: Tensor, eps: float, rotation: Rotation, out: Rows) -> None:
        """RMSNorm and rotary embedding of each head of x [rows, heads * head_dim], into `out` of the same shape.

        head_dim: len(weight), a multiple of `block_columns`
        """
        rows, width = x.shape
        head_dim = len(weight)
        angles = address(rotation.cos), address(rotation.sin)
        operation = descriptors.norm_rope(
            rows, width // head_dim, head_dim, *matrix(x), address(weight), eps, *angles, *matrix(out)
        )
        self._compute(operation, (x, weight, rotation), (out,))

    def add_layer_norm(
        self, x: Rows, delta: Rows, weight: Tensor, bias: Tensor, eps: float, out: Rows, rounded: Rows
    ) -> None:
        """LayerNorm of x + delta into `out` and `rounded`, which in float32 may be the same rows.

        x, out: float32 [rows, width]; delta, rounded: of the same shape; weight, bias: float32 [width]
        """
        weights = address(weight), address(bias), eps
        operation = descriptors.add_layer_norm(
            *x.shape, *matrix(x), *matrix(delta), *weights, *matrix(out), *matrix(rounded)
        )
        self._compute(operation, (x, delta, weight, bias), (out, rounded))

    def embed_layer_norm(
        self,
        tables: Sequence[tuple[Tensor, Tensor | None]],
        weight: Tensor,
        bias: Tensor,
        eps: float,
        out: Rows,
        rounded: Rows,
    ) -> None:
        """LayerNorm of the float32 sum of rows of three tables into `out` and `rounded`, as in `add_layer_norm`.

        tables: [any, width], each with the indices of its rows, int64 [rows], or None for its first row

        IndexError, when the operation is computed, for an index outside of its table.
        """
        lookups = [member for table, rows in tables for member in (address(table), len(table), address(rows))]
        weights = address(weight), address(bias), eps
        operation = descriptors.embed_layer_norm(*out.shape, *lookups, *weights, *matrix(out), *matrix(rounded))
        self._compute(operation, (*(x for table in tables for x in table), weight, bias), (out, rounded))

    def pack(self, weight: Tensor) -> PackedWeight:
        """A weight [outputs, inputs] for `gemm`."""
        outputs, inputs = weight.shape
        packed = torch.empty_like(weight)
        self._at_once(self.library.rerankd_pack, self.unit.number, outputs, inputs, address(weight), address(packed))
        return PackedWeight(packed)

    def pack_int8(self, weight: Tensor, scales: Tensor) -> PackedWeight:
        """An int8 weight [outputs, inputs], up to `largest_weight` in magnitude, and its float32 scales [outputs]."""
        outputs, inputs = weight.shape
        packed, sums = torch.empty_like(weight), torch.empty(outputs)
        to = address(packed), address(sums)
        self._at_once(self.library.rerankd_pack_int8, self.unit.number, outputs, inputs, address(weight), *to)
        return PackedWeight(packed, scales, sums)

    def pack_int16(self, weight: Tensor, scales: Tensor) -> PackedWeight:
        """An int16 weight [outputs, inputs], and its float32 scales [outputs].

        The magnitudes of an output's weights have a sum of at most (2^31 - 1) / `largest_half`, so that int32 holds the
        sums of products.
        """
        outputs, inputs = weight.shape
        lines = weight.view(outputs // _LANES, _LANES, inputs // 2, 2).transpose(1, 2)
        return PackedWeight(lines.contiguous().view(outputs, inputs), scales, torch.zeros(outputs))

    def gemm(
        self,
        rows: BlockedTensor | QuantizedRows,
        weight: PackedWeight,
        bias: Tensor | None,
        out: Rows,
        epilogue: str | None = None,
        residual: Rows | None = None,
    ) -> None:
        """epilogue(x W^T + b) into `out`, for rows and a weight both in the unit's dtype, in 8 bits or in 16 bits.

        bias: float32 [outputs]
        epilogue: computed on the sums before they are rounded: "gelu", "gelu_tanh", "quick_gelu", "gated" (silu of the
            first half of the outputs, times the second half), or "residual", which adds `residual` [rows, outputs]

        ValueError where shapes or precisions do not fit each other.
        """
        outputs, inputs = weight.packed.shape
        x, steps, zeros = rows if isinstance(rows, QuantizedRows) else (rows, None, None)
        shape = (x.count, outputs // 2 if epilogue == "gated" else outputs)
        halves = weight.packed.dtype == torch.int16
        if (steps is None) != (weight.scales is None) or (x.dtype == torch.int16) != halves or x.width != inputs:
            raise ValueError(
                f"Rows of {x.width} columns in {x.dtype} do not fit a weight of {inputs} columns in "
                f"{weight.packed.dtype}."
            )
        if out.shape != shape or (residual is not None and residual.shape != shape):
            raise ValueError(f"An output of shape {list(shape)} cannot be written to rows of {list(out.shape)}.")
        operation = descriptors.gemm(
            x.count,
            inputs * weight.packed.itemsize // COLUMN_BLOCK_BYTES,
            outputs,
            x.address,
            x.block_stride,
            address(weight.packed),
            address(bias),
            *(NO_MATRIX if residual is None else matrix(residual)),
            *matrix(out),
            EPILOGUES.index(epilogue),
            address(weight.scales),
            address(weight.sums),
            address(steps),
            address(zeros),
            halves,
        )
        self._compute(operation, (x, steps, zeros, weight, bias, residual), (out,))

    def attention(self, q: Rows, k: Rows, v: Rows, head_dim: int, layout: AttentionLayout, scale: float) -> Rows:
        """Attention of q [rows, heads * head_dim], k and v [T, kv_heads * head_dim]; of the shape of q."""
        rows, width = q.shape
        out = self.empty_rows(rows, width)
        runs, bounds = layout.derived(runs_of)
        operation = descriptors.attention(
            len(runs) - 1,
            runs.buffer_info()[0],
            bounds.buffer_info()[0],
            width // head_dim,
            k.shape[1] // head_dim,
            head_dim,
            *matrix(q),
            *matrix(k),
            *matrix(v),
            layout.causal,
            scale,
            *matrix(out),
        )
        self._compute(operation, (q, k, v, runs, bounds), (out,))
        return out
