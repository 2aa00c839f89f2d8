"""Which packed rows attend to which: the layout that every attention backend reads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from rerankd.core import PackedGroup, Span
from rerankd.layers.attention.buckets import Bucket, in_buckets
from rerankd.layers.rows import Rows

NOTHING = Span(0, 0)
OWN_PER_SHARED = 4
"""Own keys in a run of blocks, for each of the keys that they share (see `AttentionLayout.runs`)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A run of query rows, and the key rows that it sees: all of `shared`, then `own`.

    In a causal layout the last query row sees all of `own`, the one before it all but the last key, and so
    on: a query run shorter than `own` is aligned to its end.
    """

    query: Span
    shared: Span
    own: Span

    @property
    def keys(self) -> int:
        """How many keys it sees in all."""
        return len(self.shared) + len(self.own)


@dataclass(frozen=True)
class AttentionLayout:
    """The blocks of one packed batch. Their query runs follow one another and cover every query row."""

    blocks: tuple[Block, ...]
    causal: bool

    @property
    def query_rows(self) -> int:
        return self.blocks[-1].query.stop if self.blocks else 0

    @cached_property
    def cu_seqlens(self) -> tuple[Tensor, Tensor]:
        """Cumulative query and key counts, int32 [blocks + 1] each, as variable-length kernels read them."""
        queries = torch.tensor([0] + [len(block.query) for block in self.blocks], dtype=torch.int32)
        keys = torch.tensor([0, *self.key_counts], dtype=torch.int32)
        return queries.cumsum(0, dtype=torch.int32), keys.cumsum(0, dtype=torch.int32)

    @cached_property
    def key_counts(self) -> list[int]:
        return [block.keys for block in self.blocks]

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The blocks grouped for kernels that take batches of one size; made once for all layers."""
        return in_buckets(self.blocks, self.causal)

    @cached_property
    def runs(self) -> tuple[array[int], array[int]]:
        """The blocks in runs that see the same shared keys, as a kernel that packs those once for a run reads them.

        int64 [runs + 1], where runs begin, and int64 [blocks * 6]: start and stop of query, shared and own of each.
        A run's own keys are bounded, so that many threads find work, of rows that they computed; blocks that share none
        are runs of their own.
        """
        starts, keys = [0], 0
        for i, block in enumerate(self.blocks):
            if keys and (block.shared != self.blocks[i - 1].shared or keys > OWN_PER_SHARED * len(block.shared)):
                starts.append(i)
                keys = 0
            keys += len(block.own)
        spans = (span for block in self.blocks for span in (block.query, block.shared, block.own))
        bounds = array("q", (bound for span in spans for bound in (span.start, span.stop)))
        return array("q", (*starts, len(self.blocks))), bounds

    @cached_property
    def key_rows(self) -> Tensor:
        """The packed row of every block's every key, block after block: int64 [sum of key counts]."""
        spans = [span for block in self.blocks for span in (block.shared, block.own)]
        return torch.cat([torch.arange(span.start, span.stop) for span in spans])


class Attention(Protocol):
    """softmax(q k^T * scale) v over the rows that the layout joins; no dropout, no cache.

    q: [rows, heads, head_dim]; k, v: [T, kv_heads, head_dim], where heads is a multiple of kv_heads and
    query head h reads key head h // (heads / kv_heads). Returns [rows, heads * head_dim] in q's dtype, for a map
    to read.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float) -> Rows: ...


def causal_layout(groups: Sequence[PackedGroup]) -> AttentionLayout:
    """A decoder's layout: a prefix sees itself; a suffix sees its prefix and itself; all causally."""
    blocks = []
    for group in groups:
        if len(group.prefix):
            blocks.append(Block(group.prefix, NOTHING, group.prefix))
        blocks.extend(Block(suffix, group.prefix, suffix) for suffix in group.suffixes)
    return AttentionLayout(tuple(blocks), causal=True)


def separate_layout(spans: Sequence[Span]) -> AttentionLayout:
    """An encoder's layout: every span sees itself, in both directions, and nothing else."""
    return AttentionLayout(tuple(Block(span, NOTHING, span) for span in spans), causal=False)


def pruned_layout(layout: AttentionLayout, spans: Sequence[Span]) -> AttentionLayout:
    """A last layer's layout, where one row of each of `spans` is still a query and its keys stay as they were.

    Of a causal layout that row is the span's last (it sees all of it); of an encoder's it may be any.
    """
    kept = set(spans)
    chosen = [block for block in layout.blocks if block.query in kept]
    return AttentionLayout(
        tuple(Block(Span(i, i + 1), block.shared, block.own) for i, block in enumerate(chosen)),
        causal=layout.causal,
    )
