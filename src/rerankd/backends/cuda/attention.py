"""Attention for CUDA: the whole packed batch in one variable-length flash-attention call.

Each block's keys (its prefix again, then its own) are gathered to lie side by side; the kernel aligns a causal
block to its end, which is just what a suffix behind a prefix, and a last layer's single row, need.
The gather lives for one layer. Written against `torch.nn.attention.varlen`; not yet measured on a GPU.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from rerankd.backends.torch.attention import sdpa_attention
from rerankd.layers.layout import AttentionLayout


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionLayout,
    scale: float,
    window: int | None = None,
    slopes: tuple[float, ...] = (),
) -> Tensor:
    """An `Attention` for bfloat16 or float16 on CUDA."""
    if window is not None or slopes:
        return sdpa_attention(q, k, v, layout, scale, window, slopes)
    rows = layout.derived(_key_rows).to(k.device, non_blocking=True)
    cu_queries, cu_keys = (counts.to(q.device, non_blocking=True) for counts in layout.derived(_cu_seqlens))
    attended = varlen_attn(
        q,
        k.index_select(0, rows),
        v.index_select(0, rows),
        cu_queries,
        cu_keys,
        max(len(block.query) for block in layout.blocks),
        max(block.keys for block in layout.blocks),
        scale=scale,
        window_size=(-1, 0) if layout.causal else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(Tensor, attended).flatten(1)  # a pair only where return_aux asks for one


def _cu_seqlens(layout: AttentionLayout) -> tuple[Tensor, Tensor]:
    """Cumulative query and key counts, int32 [blocks + 1] each."""
    queries = torch.tensor([0, *(len(block.query) for block in layout.blocks)], dtype=torch.int32)
    keys = torch.tensor([0, *(block.keys for block in layout.blocks)], dtype=torch.int32)
    return queries.cumsum(0, dtype=torch.int32), keys.cumsum(0, dtype=torch.int32)


def _key_rows(layout: AttentionLayout) -> Tensor:
    """The packed row of every block's every key, block after block: int64 [sum of key counts]."""
    spans = [span for block in layout.blocks for span in (block.shared, block.own)]
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])
