"""Attention by torch's scaled_dot_product_attention: the CPU's backend, and any device's fallback.

Blocks of about the same size go through one call: each call ends in a wait for all threads, and a batch of short
documents would wait more than it computes. Nothing but attention is padded for that, and by a few rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.attention.layout import AttentionLayout


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """An `Attention` (see layout.py)."""
    out = torch.empty_like(q)
    for bucket in layout.buckets:
        count = len(bucket.blocks)
        attended = F.scaled_dot_product_attention(
            _gather(q, bucket.query_rows, count),
            _gather(k, bucket.key_rows, count),
            _gather(v, bucket.key_rows, count),
            attn_mask=bucket.mask(q),
            is_causal=bucket.square and layout.causal,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        ).transpose(1, 2)
        if isinstance(bucket.query_rows, slice):
            out[bucket.query_rows].view(count, -1, *out.shape[1:]).copy_(attended)
        else:
            # A row of padding is its block's last row again, and writes the same values there.
            out[bucket.query_rows] = attended
    return out.flatten(1)


def _gather(rows: Tensor, wanted: Tensor | slice, blocks: int) -> Tensor:
    """[rows, heads, dim] -> [blocks, heads, rows of a block, dim], as a view where `wanted` is a slice."""
    found = rows[wanted]
    return (found.view(blocks, -1, *rows.shape[1:]) if isinstance(wanted, slice) else found).transpose(1, 2)
