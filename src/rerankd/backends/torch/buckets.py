"""Blocks of a layout grouped by size, so that one call of a batched kernel serves many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from rerankd.core import Span
from rerankd.layers.layout import AttentionLayout, Block

PADDING = 1.25
"""A bucket's largest block has at most this many times the queries x keys of its smallest."""
ELEMENTS = 1 << 22
"""Queries x keys of a bucket at most, unless one block alone has more: bounds its mask."""
GATHERED = 1 << 16
"""Keys of all blocks of a bucket at most, unless one block alone has more: each block gets a copy of shared keys."""

MaskKey: TypeAlias = "tuple[torch.dtype, torch.device, int | None, tuple[float, ...]]"


@dataclass(frozen=True, eq=False)
class Bucket:
    """Blocks that are computed together, each padded to the longest.

    Where blocks of one size lie side by side, as all documents of one length do, their rows are a slice.
    """

    blocks: Sequence[Block]
    causal: bool
    _masks: dict[MaskKey, Tensor] = field(default_factory=dict)

    @cached_property
    def queries(self) -> int:
        """Query rows of the longest block."""
        return max(len(block.query) for block in self.blocks)

    @cached_property
    def keys(self) -> int:
        """Keys of the longest block."""
        return max(block.keys for block in self.blocks)

    @property
    def square(self) -> bool:
        """Whether plain causal masking is right: one block whose queries are its keys."""
        return len(self.blocks) == 1 and self.queries == self.keys > 1

    @cached_property
    def padded(self) -> bool:
        """Whether a block is shorter than another."""
        return any(len(block.query) < self.queries or block.keys < self.keys for block in self.blocks)

    @cached_property
    def query_rows(self) -> Tensor | slice:
        """Packed rows, int64 [blocks, queries]; padding is the block's last row again."""
        spans = [block.query for block in self.blocks]
        return _side_by_side(spans) or _filled([list(range(s.start, s.stop)) for s in spans], self.queries)

    @cached_property
    def key_rows(self) -> Tensor | slice:
        """Packed rows, int64 [blocks, keys]: each block's shared keys, then its own, then padding."""
        if not any(len(block.shared) for block in self.blocks):
            side_by_side = _side_by_side([block.own for block in self.blocks])
            if side_by_side:
                return side_by_side
        rows = [[*range(b.shared.start, b.shared.stop), *range(b.own.start, b.own.stop)] for b in self.blocks]
        return _filled(rows, self.keys)

    def mask(self, like: Tensor, window: int | None, slopes: tuple[float, ...]) -> Tensor | None:
        """The bias of logits, [blocks, 1 or heads, queries, keys] in `like`'s dtype and on its device; None for none.

        window, slopes: see `Attention`
        """
        hides = self.padded or (self.causal and self.queries > 1 and not self.square)
        if not hides and not slopes and (window is None or window >= self.keys):
            return None
        key = (like.dtype, like.device, window, slopes)
        if key not in self._masks:
            self._masks[key] = self._mask(window, slopes).to(like.device, like.dtype)
        return self._masks[key]

    @cached_property
    def distances(self) -> Tensor:
        """The place of each query row less that of each key, int64 [blocks, queries, keys]."""
        # Rows of padding see what the last row of their block sees.
        lengths = torch.tensor([len(block.query) for block in self.blocks])[:, None]
        first = torch.tensor([block.first for block in self.blocks])[:, None]
        places = (first + torch.minimum(torch.arange(self.queries), lengths - 1))[..., None]
        return places - torch.arange(self.keys)

    def _mask(self, window: int | None, slopes: tuple[float, ...]) -> Tensor:
        keys, distances = torch.arange(self.keys), self.distances
        hidden = (keys >= torch.tensor([block.keys for block in self.blocks])[:, None, None]).expand(
            -1, self.queries, -1
        )
        if self.causal:
            hidden = hidden | (distances < 0)
        if window is not None:
            hidden = hidden | (distances.abs() > window)
        mask = torch.zeros(hidden.shape)[:, None]
        if slopes:
            mask = -torch.tensor(slopes)[:, None, None] * distances.abs()[:, None]
        return mask.masked_fill(hidden[:, None], float("-inf"))


def in_buckets(layout: AttentionLayout) -> list[Bucket]:
    """The blocks of a layout by falling size, in buckets of like sizes."""
    ordered = sorted(layout.blocks, key=lambda b: (-b.keys, -len(b.query)))
    return [Bucket(blocks, layout.causal) for blocks in _alike(ordered)]


def _alike(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    bucket: list[Block] = []
    smallest = 0  # queries x keys of the bucket's smallest block
    queries = 0
    for block in blocks:
        size = len(block.query) * block.keys
        if bucket:
            padded = max(queries, len(block.query)) * bucket[0].keys
            count = len(bucket) + 1
            too_many = padded * count > ELEMENTS or bucket[0].keys * count > GATHERED
            if too_many or padded > PADDING * min(smallest, size):
                yield bucket
                bucket = []
        smallest = min(smallest, size) if bucket else size
        queries = max(queries, len(block.query)) if bucket else len(block.query)
        bucket.append(block)
    if bucket:
        yield bucket


def _side_by_side(spans: Sequence[Span]) -> slice | None:
    """The rows of all spans, if they have one length and follow one another."""
    length = len(spans[0])
    if all(span.start == spans[0].start + i * length and len(span) == length for i, span in enumerate(spans)):
        return slice(spans[0].start, spans[-1].stop)
    return None


def _filled(rows: Sequence[list[int]], width: int) -> Tensor:
    return torch.tensor([block_rows + block_rows[-1:] * (width - len(block_rows)) for block_rows in rows])
