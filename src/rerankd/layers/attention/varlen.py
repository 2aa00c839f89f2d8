"""Attention for CUDA: the whole packed batch in one variable-length flash-attention call.

Each block's keys (its prefix again, then its own) are gathered to lie side by side; the kernel aligns a causal
block to its end, which is just what a suffix behind a prefix, and a last layer's single row, need.
The gather lives for one layer. Written against `torch.nn.attention.varlen`; not yet measured on a GPU.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from rerankd.layers.attention.layout import AttentionLayout


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """An `Attention` (see layout.py) for bfloat16 or float16 on CUDA."""
    rows = layout.key_rows.to(k.device, non_blocking=True)
    cu_queries, cu_keys = (counts.to(q.device, non_blocking=True) for counts in layout.cu_seqlens)
    attended = varlen_attn(
        q,
        k.index_select(0, rows),
        v.index_select(0, rows),
        cu_queries,
        cu_keys,
        max(len(block.query) for block in layout.blocks),
        max(layout.key_counts),
        scale=scale,
        window_size=(-1, 0) if layout.causal else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(Tensor, attended).flatten(1)  # a pair only where return_aux asks for one
