"""Attention by torch's scaled_dot_product_attention, block by block: the CPU's backend, and any device's fallback."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.attention.layout import AttentionLayout, Block


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """An `Attention` (see layout.py)."""
    out = torch.empty_like(q)
    for block in layout.blocks:
        rows = slice(block.query.start, block.query.stop)
        keys, values = _gather(k, block), _gather(v, block)
        square = not len(block.shared) and len(block.query) == len(block.own)
        causal = layout.causal and len(block.query) > 1
        # [rows, heads, dim] -> [1, heads, rows, dim], as views
        attended = F.scaled_dot_product_attention(
            q[rows].transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=_tail_mask(block, q) if causal and not square else None,
            is_causal=causal and square,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out[rows] = attended[0].transpose(0, 1)
    return out


def _gather(rows: Tensor, block: Block) -> Tensor:
    own = rows[block.own.start : block.own.stop]
    if not len(block.shared):
        return own
    return torch.cat([rows[block.shared.start : block.shared.stop], own])


def _tail_mask(block: Block, like: Tensor) -> Tensor:
    """Additive mask [query rows, keys] that is causal against the end of the keys."""
    keys = len(block.shared) + len(block.own)
    mask = torch.full((len(block.query), keys), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu_(keys - len(block.query) + 1)
