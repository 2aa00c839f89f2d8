"""Rows in float8 (e4m3) for GEMMs: quantised by the kernel that computes them, before they are written, where one does.

A row is scaled so that its largest value is the largest number of float8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rerankd.backends.cuda.kernels import ACTIVATIONS, activated, launch_norm
from rerankd.layers.spec import Activation, Affine, Norm

FP8 = torch.float8_e4m3fn
MOST = 448.0
"""The largest number of float8 e4m3."""


class Codes(NamedTuple):
    """Quantised rows: float8 [rows, width], and float32 [rows, 1], whose product stands for the rows."""

    values: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, rows: int, width: int, device: torch.device) -> Codes:
        """Codes without values."""
        values = torch.empty((rows, width), dtype=FP8, device=device)
        return cls(values, torch.empty((rows, 1), dtype=torch.float32, device=device))


class Operand(NamedTuple):
    """Rows [rows, width] as GEMMs read them: plain, quantised or both, as those GEMMs ask for."""

    plain: Tensor | None
    codes: Codes | None = None

    def rows(self, rows: Tensor) -> Operand:
        """Some rows."""
        plain = None if self.plain is None else self.plain.index_select(0, rows)
        if self.codes is None:
            return Operand(plain)
        # Indexing is not defined for float8 everywhere; for bytes it is.
        values = self.codes.values.view(torch.uint8).index_select(0, rows).view(FP8)
        return Operand(plain, Codes(values, self.codes.scale.index_select(0, rows)))


def quantised_rows(x: Tensor) -> Codes:
    """x [rows, width] in float8, by a pass of its own."""
    rows, width = x.shape
    codes = Codes.empty(rows, width, x.device)
    if rows:
        block = triton.next_power_of_2(width)
        _quantise_kernel[(rows,)](
            x, *codes, x.stride(0), most=MOST, width=width, block=block, num_warps=min(16, max(4, block // 1024))
        )
    return codes


@triton.jit
def _quantise_kernel(x_ptr, out_ptr, scale_ptr, stride, most: tl.constexpr, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    x = tl.load(x_ptr + row * stride + column, mask=column < width, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) / most, 1.0e-12)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * width + column, (x / scale).to(out_ptr.dtype.element_ty), mask=column < width)


def add_norm_quantised(
    x: Tensor, delta: Tensor | None, spec: Norm, weights: Affine, plain_dtype: torch.dtype | None
) -> tuple[Tensor, Operand]:
    """`kernels.add_norm`, whose norm is quantised too. plain_dtype: of the norm itself; None where nothing reads it"""
    summed = x if delta is None else torch.empty_like(x)
    plain = None if plain_dtype is None else torch.empty(x.shape, dtype=plain_dtype, device=x.device)
    codes = Codes.empty(x.shape[0], x.shape[1], x.device)
    launch_norm(x, delta, spec, weights, summed if delta is not None else None, plain, False, codes)
    return summed, Operand(plain, codes)


def gated_quantised(x: Tensor, activation: Activation) -> Codes:
    """activation(gate) * up of x [rows, 2 * width], the gate first, quantised: [rows, width]."""
    rows, width = x.shape[0], x.shape[1] // 2
    codes = Codes.empty(rows, width, x.device)
    if rows:
        block = triton.next_power_of_2(width)
        _gated_kernel[(rows,)](
            x, *codes, most=MOST, width=width, block=block, activation=ACTIVATIONS[activation],
            num_warps=min(16, max(4, block // 512)),
        )  # fmt: skip
    return codes


@triton.jit
def _gated_kernel(
    x_ptr, out_ptr, scale_ptr, most: tl.constexpr, width: tl.constexpr, block: tl.constexpr, activation: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    gate = tl.load(x_ptr + row * (2 * width) + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * (2 * width) + width + column, mask=inside, other=0.0).to(tl.float32)
    y = activated(gate, activation) * up
    scale = tl.maximum(tl.max(tl.abs(y), axis=0) / most, 1.0e-12)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * width + column, (y / scale).to(out_ptr.dtype.element_ty), mask=inside)
