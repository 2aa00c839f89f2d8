"""Attention over the packed layout: one kernel in Triton (after FlashAttention-2; Dao, 2023).

A program takes some query rows, which may belong to several documents, and one head. Keys of a shared prefix are read
in place, and not copied for every document. Keys of other documents are hidden by each row's own range.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rerankd.backends.cuda.tiles import Tiles
from rerankd.layers.rotary import Rotation

LOG2_E = 1.4426950408889634


class NormRope(NamedTuple):
    """The norm and the rotation of each head of a query, before its product with keys.

    rotation: float32 [query rows, 1, pairs]; None for no rotation
    weight, eps: the parameters of an RMSNorm; a weight of None for no norm
    """

    rotation: Rotation | None = None
    weight: Tensor | None = None
    eps: float = 0.0


NO_NORM_ROPE = NormRope()


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Tiles,
    scale: float,
    window: int | None,
    slopes: Tensor | None,
    norm_rope: NormRope = NO_NORM_ROPE,
) -> Tensor:
    """softmax(q k^T * scale + bias) v over the rows that `tiles` join: [query rows, heads * head_dim].

    q: [query rows, heads, head_dim]; k, v: [rows, kv_heads, head_dim]; only the last dimension must be contiguous, and
    heads must lie side by side
    window: the largest distance between a query row and a key row that it attends to; None for any distance
    slopes: the slopes of ALiBi, float32 [heads]
    norm_rope: the norm and rotation of q, which the kernel applies; k is normed and rotated already
    """
    exact = q.dtype == torch.float32
    # Of the settings that `benchmarks.gpu.kernels` tries on an H100, the fastest, or as fast as that within 3 %.
    keys, stages = 32 if exact or q.shape[2] > 64 else 64, 2 if exact or q.shape[2] > 128 else 3
    return launch(q, k, v, tiles, scale, window, slopes, keys, 4, stages, norm_rope)


def launch(
    q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float, window: int | None, slopes: Tensor | None,
    keys: int, warps: int, stages: int, norm_rope: NormRope = NO_NORM_ROPE,
) -> Tensor:  # fmt: skip
    """`flash_attention` by programs that read `keys` keys at a time."""
    rows, heads, head_dim = q.shape
    out = torch.empty((rows, heads * head_dim), dtype=q.dtype, device=q.device)
    exact = q.dtype == torch.float32
    width = max(16, triton.next_power_of_2(head_dim))
    cos, sin = (None, None) if norm_rope.rotation is None else norm_rope.rotation
    _attention_kernel[(heads, len(tiles.table))](
        q, k, v, out, tiles.table, tiles.first, tiles.stop, tiles.place, slopes, cos, sin, norm_rope.weight,
        norm_rope.eps, scale * LOG2_E, q.stride(0), k.stride(0), v.stride(0), heads * head_dim,
        group=heads // k.shape[1], head_dim=head_dim, width=width, queries=tiles.queries, keys=keys,
        window=-1 if window is None else window, biased=slopes is not None, exact=exact,
        pairs=0 if cos is None else cos.shape[-1], norms=norm_rope.weight is not None,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


@triton.jit
def _norm_rope(
    q, q_row, row, inside, column, cos_ptr, sin_ptr, weight_ptr, eps,
    head_dim: tl.constexpr, pairs: tl.constexpr, norms: tl.constexpr,
):  # fmt: skip
    """The queries q [queries, width] of a tile, normed and rotated, in q's dtype: float32 until the end.

    q_row: pointers to the first values [queries, 1]; the other value of each pair is read again
    """
    x = q.to(tl.float32)
    inverse = tl.full((q.shape[0],), 1.0, dtype=tl.float32)
    if norms:
        inverse = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / head_dim + eps)
        x *= inverse[:, None] * tl.load(weight_ptr + column, mask=column < head_dim, other=0.0)[None, :].to(tl.float32)
    if pairs > 0:
        first = column < pairs
        pair = tl.where(first, column, column - pairs)
        partner = tl.where(first, column + pairs, column - pairs)
        rotates = inside & (column < 2 * pairs)[None, :]
        other = tl.load(q_row + partner[None, :], mask=rotates, other=0.0).to(tl.float32)
        if norms:
            weight = tl.load(weight_ptr + partner, mask=column < 2 * pairs, other=0.0).to(tl.float32)
            other *= inverse[:, None] * weight[None, :]
        angle = row.to(tl.int64)[:, None] * pairs + pair[None, :]
        cos = tl.load(cos_ptr + angle, mask=rotates, other=1.0)
        sin = tl.load(sin_ptr + angle, mask=rotates, other=0.0)
        x = x * cos + tl.where(first[None, :], -other, other) * sin
    return x.to(q.dtype)


@triton.jit
def _seen(
    q, total, most, weighted, k_ptr, v_ptr, key, valid, distance, slope, k_stride, v_stride, column, scale,
    head_dim: tl.constexpr, window: tl.constexpr, biased: tl.constexpr, exact: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax, over the keys `key`; `valid` [queries, keys] says which row sees which."""
    inside = column < head_dim
    # Rows that hold no key are read as zeros by the mask of columns and hidden by `valid`.
    k = tl.load(k_ptr + key.to(tl.int64)[None, :] * k_stride + column[:, None], mask=inside[:, None], other=0.0)
    logits = tl.dot(q, k, input_precision="ieee" if exact else None) * scale
    if biased:
        logits -= slope * tl.abs(distance).to(tl.float32)
    if window >= 0:
        valid = valid & (tl.abs(distance) <= window)
    # No infinity: a row that has seen no key yet would subtract one from itself. Its weights of the first keys are
    # undone by the first key that it sees.
    logits = tl.where(valid, logits, -1.0e30)
    above = tl.maximum(most, tl.max(logits, axis=1))
    weights = tl.exp2(logits - above[:, None])
    fade = tl.exp2(most - above)
    v = tl.load(v_ptr + key.to(tl.int64)[:, None] * v_stride + column[None, :], mask=inside[None, :], other=0.0)
    weighted = weighted * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee" if exact else None)
    return total * fade + tl.sum(weights, axis=1), above, weighted


# The tables lie wherever those before them end. Without this the kernel would be compiled anew for each alignment.
@triton.jit(do_not_specialize_on_alignment=["table_ptr", "first_ptr", "stop_ptr", "place_ptr"])
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, table_ptr, first_ptr, stop_ptr, place_ptr, slopes_ptr, cos_ptr, sin_ptr,
    weight_ptr, eps, scale, q_stride, k_stride, v_stride, out_stride,
    group: tl.constexpr, head_dim: tl.constexpr, width: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
    window: tl.constexpr, biased: tl.constexpr, exact: tl.constexpr, pairs: tl.constexpr, norms: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    table = table_ptr + tl.program_id(1) * 6
    row_first = tl.load(table)
    row_stop = tl.load(table + 1)
    if row_first < row_stop:
        own_first = tl.load(table + 2)
        own_stop = tl.load(table + 3)
        shared_first = tl.load(table + 4)
        shared_stop = tl.load(table + 5)
        row = row_first + tl.arange(0, queries)
        here = row < row_stop
        column = tl.arange(0, width)
        first = tl.load(first_ptr + row, mask=here, other=0)
        stop = tl.load(stop_ptr + row, mask=here, other=0)
        place = tl.load(place_ptr + row, mask=here, other=0)
        slope = 0.0
        if biased:
            slope = tl.load(slopes_ptr + head) * 1.4426950408889634
        q_row = q_ptr + row.to(tl.int64)[:, None] * q_stride + head * head_dim
        inside = here[:, None] & (column < head_dim)[None, :]
        q = tl.load(q_row + column[None, :], mask=inside, other=0.0)
        if norms or pairs > 0:
            q = _norm_rope(q, q_row, row, inside, column, cos_ptr, sin_ptr, weight_ptr, eps, head_dim, pairs, norms)
        k_head = k_ptr + (head // group) * head_dim
        v_head = v_ptr + (head // group) * head_dim
        total = tl.zeros((queries,), dtype=tl.float32)
        most = tl.full((queries,), -1.0e30, dtype=tl.float32)
        weighted = tl.zeros((queries, width), dtype=tl.float32)
        for start in range(shared_first, shared_stop, keys):
            key = start + tl.arange(0, keys)
            valid = (key < shared_stop)[None, :] & here[:, None]
            distance = place[:, None] - (key - shared_first)[None, :]
            total, most, weighted = _seen(
                q, total, most, weighted, k_head, v_head, tl.minimum(key, shared_stop - 1), valid, distance, slope,
                k_stride, v_stride, column, scale, head_dim, window, biased, exact,
            )  # fmt: skip
        before = shared_stop - shared_first
        for start in range(own_first, own_stop, keys):
            key = start + tl.arange(0, keys)
            valid = (key[None, :] >= first[:, None]) & (key[None, :] < stop[:, None])
            distance = place[:, None] - (before + key[None, :] - first[:, None])
            total, most, weighted = _seen(
                q, total, most, weighted, k_head, v_head, tl.minimum(key, own_stop - 1), valid, distance, slope,
                k_stride, v_stride, column, scale, head_dim, window, biased, exact,
            )  # fmt: skip
        out = out_ptr + row.to(tl.int64)[:, None] * out_stride + head * head_dim + column[None, :]
        attended = weighted / total[:, None]
        tl.store(out, attended.to(out_ptr.dtype.element_ty), mask=inside)
