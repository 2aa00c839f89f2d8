"""Attention by torch's scaled_dot_product_attention, on any device.

Blocks of about the same size go through one call: each call ends in a wait for all threads, and a batch of short
documents would wait more than it computes. Only attention is padded for this, by a few rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.buckets import in_buckets
from rerankd.layers.layout import AttentionLayout


class Attention(Protocol):
    """softmax(q k^T * scale + bias) v over the rows that the layout joins; no dropout, no cache.

    q: [query rows, heads, head_dim]; k, v: [T, kv_heads, head_dim], where heads is a multiple of kv_heads and query
    head h reads key head h // (heads / kv_heads)
    window: the largest distance between a query row and a key row that it attends to; None for any distance
    slopes: the slopes of ALiBi, one for each head; empty for no bias

    Returns [query rows, heads * head_dim] in q's dtype.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: AttentionLayout,
        scale: float,
        window: int | None = None,
        slopes: tuple[float, ...] = (),
    ) -> Tensor: ...


def sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionLayout,
    scale: float,
    window: int | None = None,
    slopes: tuple[float, ...] = (),
) -> Tensor:
    """An `Attention`."""
    out = torch.empty_like(q)
    for bucket in layout.derived(in_buckets):
        count = len(bucket.blocks)
        mask = bucket.mask(q, window, slopes)
        attended = F.scaled_dot_product_attention(
            gathered(q, bucket.query_rows, count),
            gathered(k, bucket.key_rows, count),
            gathered(v, bucket.key_rows, count),
            attn_mask=mask,
            is_causal=mask is None and bucket.square and layout.causal,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        scattered(attended, bucket.query_rows, out)
    return out.flatten(1)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """A factor of distance for each head, a geometric sequence (Press et al., 2022).

    Where `heads` is no power of two, the sequence of the power below comes first, then every second term of the
    sequence of the power above, as in the authors' code.
    """
    below = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
    above = [2.0 ** (-8.0 * (i + 1) / (2 * below)) for i in range(0, 2 * below, 2)]
    return tuple(slopes + above[: heads - below])


def gathered(rows: Tensor, indices: Tensor | slice, blocks: int) -> Tensor:
    """[rows, heads, dim] -> [blocks, heads, rows of a block, dim], as a view where `indices` is a slice."""
    selected = rows[indices]
    return (selected.view(blocks, -1, *rows.shape[1:]) if isinstance(indices, slice) else selected).transpose(1, 2)


def scattered(attended: Tensor, rows: Tensor | slice, out: Tensor) -> None:
    """Write [blocks, heads, rows of a block, dim] to the `rows` of out [rows, heads, dim]."""
    by_row = attended.transpose(1, 2)
    if isinstance(rows, slice):
        out[rows].view(len(by_row), -1, *out.shape[1:]).copy_(by_row)
    else:
        # A row of padding is its block's last row again, and writes the same values there.
        out[rows] = by_row
