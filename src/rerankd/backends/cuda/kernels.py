"""The operations between the GEMMs of a layer, each as one pass over memory: kernels in Triton.

Sums, norms and rotations are computed in float32, whatever dtype is read and written. Rows are contiguous; a tensor of
another stride says so where it may have one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rerankd.layers.rotary import Rotation
from rerankd.layers.spec import Activation, Affine, Norm

TILE = 4096
"""Values that one program holds: enough loads in flight, and no registers spilled."""


def add_norm(
    x: Tensor, delta: Tensor | None, spec: Norm, weights: Affine, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(x + delta, its norm in `out_dtype`): the step before a linear layer of a "pre" layer.

    x, delta: [rows, width]; x + delta has x's dtype. Without `delta` x itself is returned.
    """
    normed = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    summed = x if delta is None else torch.empty_like(x)
    launch_norm(x, delta, spec, weights, summed if delta is not None else None, normed, sum_is_normed=False)
    return summed, normed


def norm_sum(
    x: Tensor, delta: Tensor | None, spec: Norm, weights: Affine, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The norm of x + delta, in x's dtype and in `out_dtype`: the step behind a linear layer of a "post" layer."""
    state = torch.empty_like(x)
    if x.dtype == out_dtype:
        launch_norm(x, delta, spec, weights, None, state, sum_is_normed=False)
        return state, state
    normed = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    launch_norm(x, delta, spec, weights, state, normed, sum_is_normed=True)
    return state, normed


def launch_norm(
    x: Tensor,
    delta: Tensor | None,
    spec: Norm,
    weights: Affine,
    summed: Tensor | None,
    normed: Tensor | None,
    sum_is_normed: bool,
    codes: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Compute the norm of x + delta, and write each output that is not None, in x's shape.

    summed: x + delta, or its norm where `sum_is_normed`; normed: the norm; codes: the norm in float8, each row times
    a scale, and the scales [rows, 1]
    """
    rows, width = x.shape
    if not rows:
        return
    block = triton.next_power_of_2(width)
    tile = max(1, TILE // block)
    weight, bias = weights
    _norm_kernel[(triton.cdiv(rows, tile),)](
        x, delta, weight, bias, summed, normed, *(codes or (None, None)), rows, spec.eps,
        width=width, block=block, tile=tile, rms=spec.kind == "rms", has_delta=delta is not None,
        has_bias=bias is not None, writes_sum=summed is not None, sum_is_normed=sum_is_normed,
        writes_norm=normed is not None, quantises=codes is not None,
        num_warps=min(16, max(4, block // 512)),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x_ptr, delta_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, codes_ptr, scale_ptr, rows, eps,
    width: tl.constexpr, block: tl.constexpr, tile: tl.constexpr, rms: tl.constexpr, has_delta: tl.constexpr,
    has_bias: tl.constexpr, writes_sum: tl.constexpr, sum_is_normed: tl.constexpr, writes_norm: tl.constexpr,
    quantises: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.arange(0, block)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if has_delta:
        x += tl.load(delta_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if writes_sum and not sum_is_normed:
        tl.store(sum_ptr + place, x.to(sum_ptr.dtype.element_ty), mask=inside)
        # What a later layer reads is rounded; so is what this one norms.
        x = x.to(sum_ptr.dtype.element_ty).to(tl.float32)
    if rms:
        mean_square = tl.sum(x * x, axis=1) / width
        y = x * (1.0 / tl.sqrt(mean_square + eps))[:, None]
    else:
        mean = tl.sum(x, axis=1) / width
        x = tl.where(inside, x - mean[:, None], 0.0)
        y = x * (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps))[:, None]
    y *= tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if has_bias:
        y += tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if writes_sum and sum_is_normed:
        tl.store(sum_ptr + place, y.to(sum_ptr.dtype.element_ty), mask=inside)
    if writes_norm:
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)
    if quantises:
        # 448 is the largest number of float8 e4m3.
        scale = tl.maximum(tl.max(tl.abs(y), axis=1) / 448.0, 1.0e-12)
        tl.store(scale_ptr + row, scale, mask=row < rows)
        tl.store(codes_ptr + place, (y / scale[:, None]).to(codes_ptr.dtype.element_ty), mask=inside)


def norm_rope(
    x: Tensor, heads: int, head_dim: int, rotation: Rotation | None, norm: Norm | None, weights: Affine | None
) -> None:
    """Norm each of the first `heads` heads of x [rows, at least heads * head_dim], then rotate it, in place.

    rotation: float32 [rows, 1, pairs]; None for no rotation
    norm, weights: the norm of each head; None for no norm
    """
    rows = x.shape[0]
    if not rows or (rotation is None and norm is None):
        return
    pairs = head_dim // 2 if rotation is None else rotation.cos.shape[-1]
    half = triton.next_power_of_2(pairs)
    rest = head_dim - 2 * pairs
    tile = max(1, TILE // (2 * half * 2))
    weight, bias = (None, None) if weights is None else weights
    cos, sin = (None, None) if rotation is None else rotation
    _norm_rope_kernel[(heads, triton.cdiv(rows, tile))](
        x, weight, bias, cos, sin, rows, x.stride(0), 0.0 if norm is None else norm.eps,
        head_dim=head_dim, pairs=pairs, half=half, rest=rest, tile=tile,
        rest_block=triton.next_power_of_2(max(rest, 1)),
        norms=norm is not None, rms=norm is not None and norm.kind == "rms", has_bias=bias is not None,
        rotates=rotation is not None,
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _norm_rope_kernel(
    x_ptr, weight_ptr, bias_ptr, cos_ptr, sin_ptr, rows, stride, eps,
    head_dim: tl.constexpr, pairs: tl.constexpr, half: tl.constexpr, rest: tl.constexpr, rest_block: tl.constexpr,
    tile: tl.constexpr, norms: tl.constexpr, rms: tl.constexpr, has_bias: tl.constexpr, rotates: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    row = tl.program_id(1) * tile + tl.arange(0, tile)
    pair = tl.arange(0, half)
    inside = (row < rows)[:, None] & (pair < pairs)[None, :]
    base = x_ptr + row.to(tl.int64)[:, None] * stride + head * head_dim
    a_place = base + pair[None, :]
    b_place = a_place + pairs
    a = tl.load(a_place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(b_place, mask=inside, other=0.0).to(tl.float32)
    other = tl.arange(0, rest_block)
    beyond = (row < rows)[:, None] & (other < rest)[None, :]
    c_place = base + 2 * pairs + other[None, :]
    if norms:
        c = tl.zeros((tile, rest_block), dtype=tl.float32)
        if rest > 0:
            c = tl.load(c_place, mask=beyond, other=0.0).to(tl.float32)
        if not rms:
            mean = (tl.sum(a, axis=1) + tl.sum(b, axis=1) + tl.sum(c, axis=1)) / head_dim
            a = tl.where(inside, a - mean[:, None], 0.0)
            b = tl.where(inside, b - mean[:, None], 0.0)
            c = tl.where(beyond, c - mean[:, None], 0.0)
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)
        inverse = (1.0 / tl.sqrt(squares / head_dim + eps))[:, None]
        known = pair < pairs
        a *= inverse * tl.load(weight_ptr + pair, mask=known, other=0.0).to(tl.float32)[None, :]
        b *= inverse * tl.load(weight_ptr + pairs + pair, mask=known, other=0.0).to(tl.float32)[None, :]
        if has_bias:
            a += tl.load(bias_ptr + pair, mask=known, other=0.0).to(tl.float32)[None, :]
            b += tl.load(bias_ptr + pairs + pair, mask=known, other=0.0).to(tl.float32)[None, :]
        if rest > 0:
            c *= inverse * tl.load(weight_ptr + 2 * pairs + other, mask=other < rest, other=0.0).to(tl.float32)[None, :]
            if has_bias:
                c += tl.load(bias_ptr + 2 * pairs + other, mask=other < rest, other=0.0).to(tl.float32)[None, :]
            tl.store(c_place, c.to(x_ptr.dtype.element_ty), mask=beyond)
    if rotates:
        angle = row.to(tl.int64)[:, None] * pairs + pair[None, :]
        cos = tl.load(cos_ptr + angle, mask=inside, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=inside, other=0.0).to(tl.float32)
        rotated = a * cos - b * sin
        b = b * cos + a * sin
        a = rotated
    tl.store(a_place, a.to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(b_place, b.to(x_ptr.dtype.element_ty), mask=inside)


ACTIVATIONS: dict[Activation, int] = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3}


def gated(x: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up of x [rows, 2 * width], the gate first: [rows, width]."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if rows:
        block = 1024 if width >= 1024 else triton.next_power_of_2(width)
        tile = max(1, TILE // 2 // block)
        _gated_kernel[(triton.cdiv(rows, tile), triton.cdiv(width, block))](
            x, out, rows, width=width, block=block, tile=tile, activation=ACTIVATIONS[activation], num_warps=4
        )
    return out


@triton.jit
def activated(x, activation: tl.constexpr):
    """The activation of x, by its number in ACTIVATIONS."""
    if activation == 0:
        x = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif activation == 1:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * (1.0 / (1.0 + tl.exp(-2.0 * inner)))
    elif activation == 2:
        x = x * (1.0 / (1.0 + tl.exp(-x)))
    else:
        x = tl.maximum(x, 0.0)
    return x


@triton.jit(do_not_specialize=["rows"])
def _gated_kernel(
    x_ptr, out_ptr, rows, width: tl.constexpr, block: tl.constexpr, tile: tl.constexpr, activation: tl.constexpr
):
    row = tl.program_id(0) * tile + tl.arange(0, tile)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * (2 * width) + column[None, :]
    gate = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + place + width, mask=inside, other=0.0).to(tl.float32)
    out = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(out_ptr + out, (activated(gate, activation) * up).to(out_ptr.dtype.element_ty), mask=inside)
