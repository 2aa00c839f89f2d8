"""Blocks of a layout grouped by size, so that one call of a batched kernel serves many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rerankd.core import Span

if TYPE_CHECKING:
    from rerankd.layers.attention.layout import Block

PADDING = 1.25
"""A bucket's largest block has at most this many times the queries x keys of its smallest."""
ELEMENTS = 1 << 22
"""Queries x keys of a bucket at most, unless one block alone has more: bounds its mask and its gathered keys."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Blocks that are computed together, each padded to the longest.

    Where blocks of one size lie side by side, as all documents of one length do, their rows are a slice.
    """

    blocks: Sequence[Block]
    causal: bool
    _masks: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    @cached_property
    def queries(self) -> int:
        return max(len(block.query) for block in self.blocks)

    @cached_property
    def keys(self) -> int:
        return max(block.keys for block in self.blocks)

    @property
    def square(self) -> bool:
        """Whether plain causal masking is right: one block whose queries are its keys."""
        return len(self.blocks) == 1 and self.queries == self.keys > 1

    @cached_property
    def padded(self) -> bool:
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

    def mask(self, like: Tensor) -> Tensor | None:
        """What is added to logits, [blocks, 1, queries, keys] in `like`'s dtype and place; None where nothing is."""
        if self.square or not (self.padded or (self.causal and self.queries > 1)):
            return None
        key = (like.dtype, like.device)
        if key not in self._masks:
            hidden = torch.arange(self.keys) > self._last_key[..., None]
            mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask[:, None].to(like.device)
        return self._masks[key]

    @property
    def _last_key(self) -> Tensor:
        """The last key that each query sees: int64 [blocks, queries]."""
        keys = torch.tensor([block.keys for block in self.blocks])[:, None]
        if not self.causal:
            return (keys - 1).expand(-1, self.queries)
        lengths = torch.tensor([len(block.query) for block in self.blocks])[:, None]
        # Rows of padding see what the last row sees.
        return torch.minimum(keys - lengths + torch.arange(self.queries), keys - 1)


def in_buckets(blocks: Sequence[Block], causal: bool) -> list[Bucket]:
    """The blocks by falling size, in buckets of like sizes."""
    return [Bucket(own, causal) for own in _alike(sorted(blocks, key=lambda b: (-b.keys, -len(b.query))))]


def _alike(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    bucket: list[Block] = []
    smallest = 0  # queries x keys of the bucket's smallest block
    queries = 0
    for block in blocks:
        size = len(block.query) * block.keys
        if bucket:
            padded = max(queries, len(block.query)) * bucket[0].keys
            if padded > PADDING * min(smallest, size) or padded * (len(bucket) + 1) > ELEMENTS:
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
    return torch.tensor([own + own[-1:] * (width - len(own)) for own in rows])
