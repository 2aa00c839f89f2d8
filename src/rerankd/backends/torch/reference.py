"""Attention by its formula, in float32, with a dense mask: slow. Tests compare the other implementations with it."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankd.layers.layout import AttentionLayout


def bias(layout: AttentionLayout, keys: int, window: int | None, slopes: tuple[float, ...]) -> Tensor:
    """The bias of the logit of each of `keys` packed rows for each query row: float32 [heads or 1, queries, keys].

    It is minus infinity where the query row does not see the key row.
    """
    factors = -torch.tensor(slopes or (0.0,))[:, None, None]
    bias = torch.full((len(factors), layout.query_rows, keys), float("-inf"))
    for block in layout.blocks:
        key_rows = torch.tensor(
            [*range(block.shared.start, block.shared.stop), *range(block.own.start, block.own.stop)]
        )
        behind = (block.first + torch.arange(len(block.query)))[:, None] - torch.arange(len(key_rows))
        hidden = torch.zeros_like(behind, dtype=torch.bool)
        if layout.causal:
            hidden |= behind < 0
        if window is not None:
            hidden |= behind.abs() > window
        block_bias = (factors * behind.abs()).masked_fill(hidden, float("-inf"))
        bias[:, block.query.start : block.query.stop, key_rows] = block_bias
    return bias


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionLayout,
    scale: float,
    window: int | None = None,
    slopes: tuple[float, ...] = (),
) -> Tensor:
    """An `Attention` of O(rows * T) memory."""
    repeat = q.shape[1] // k.shape[1]
    queries = q.float().transpose(0, 1)
    keys = k.float().transpose(0, 1).repeat_interleave(repeat, 0)
    values = v.float().transpose(0, 1).repeat_interleave(repeat, 0)
    logits = (queries @ keys.transpose(1, 2)) * scale + bias(layout, len(k), window, slopes).to(q.device)
    return (logits.softmax(-1) @ values).transpose(0, 1).flatten(1).to(q.dtype)
