"""Attention as the formula says, in float32, with a dense mask: slow, and what the others are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankd.layers.attention.layout import AttentionLayout


def visible(layout: AttentionLayout, keys: int) -> Tensor:
    """Which of `keys` packed rows each query row sees: bool [query rows, keys]."""
    mask = torch.zeros(layout.query_rows, keys, dtype=torch.bool)
    for block in layout.blocks:
        rows = slice(block.query.start, block.query.stop)
        mask[rows, block.shared.start : block.shared.stop] = True
        own = torch.ones(len(block.query), len(block.own), dtype=torch.bool)
        if layout.causal:
            own = own.tril(diagonal=len(block.own) - len(block.query))
        mask[rows, block.own.start : block.own.stop] = own
    return mask


def reference_attention(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """An `Attention` (see layout.py) of O(rows * T) memory."""
    repeat = q.shape[1] // k.shape[1]
    queries = q.float().transpose(0, 1)
    keys = k.float().transpose(0, 1).repeat_interleave(repeat, 0)
    values = v.float().transpose(0, 1).repeat_interleave(repeat, 0)
    logits = (queries @ keys.transpose(1, 2)) * scale
    logits = logits.masked_fill(~visible(layout, len(k)).to(q.device), float("-inf"))
    return (logits.softmax(-1) @ values).transpose(0, 1).flatten(1).to(q.dtype)
