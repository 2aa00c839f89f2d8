"""The attention layout: which packed rows attend to which."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from rerankd.core import PackedGroup, Span

NOTHING = Span(0, 0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Block:
    """A run of query rows, and the key rows that it attends to: all of `shared`, then `own`.

    In a causal layout the last query row attends to all of `own`, the row before it to all but the last key, and so on:
    a query run shorter than `own` is aligned to its end.

    first: the position of the first query row among the keys of the block
    """

    query: Span
    shared: Span
    own: Span
    first: int

    @property
    def keys(self) -> int:
        """The number of keys of the block."""
        return len(self.shared) + len(self.own)


@dataclass(frozen=True)
class AttentionLayout:
    """The blocks of one packed batch. Their query runs follow one another and cover every query row."""

    blocks: tuple[Block, ...]
    causal: bool
    _derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def query_rows(self) -> int:
        """The number of query rows."""
        return self.blocks[-1].query.stop if self.blocks else 0

    def derived(self, make: Callable[[AttentionLayout], T]) -> T:
        """`make(self)`: a backend's own form of the layout. It is made once for all layers."""
        if make not in self._derived:
            self._derived[make] = make(self)
        form: T = self._derived[make]
        return form


def causal_layout(groups: Sequence[PackedGroup]) -> AttentionLayout:
    """A decoder's layout: a prefix attends to itself, a suffix to its prefix and itself, all causally."""
    blocks = []
    for group in groups:
        if len(group.prefix):
            blocks.append(Block(group.prefix, NOTHING, group.prefix, 0))
        blocks.extend(Block(suffix, group.prefix, suffix, len(group.prefix)) for suffix in group.suffixes)
    return AttentionLayout(tuple(blocks), causal=True)


def separate_layout(
    spans: Sequence[Span], causal: bool = False, unseen: Mapping[Span, int] = MappingProxyType({})
) -> AttentionLayout:
    """An encoder's layout: every span attends only to itself, in both directions or causally.

    unseen: the number of a span's last rows that are no keys
    """
    keys = [Span(span.start, span.stop - unseen.get(span, 0)) for span in spans]
    return AttentionLayout(
        tuple(Block(span, NOTHING, key_span, 0) for span, key_span in zip(spans, keys, strict=True)), causal
    )


def kept_layout(layout: AttentionLayout, rows: Sequence[int]) -> AttentionLayout:
    """The layout of a last layer in which only `rows` are queries, in that order; the keys stay the same.

    rows: packed rows of `layout` whose query rows are its key rows, as in the layouts above; ascending
    """
    starts = [block.query.start for block in layout.blocks]
    blocks = []
    for i, row in enumerate(rows):
        block = layout.blocks[bisect_right(starts, row) - 1]
        own_keys = Span(block.own.start, row + 1) if layout.causal else block.own
        blocks.append(Block(Span(i, i + 1), block.shared, own_keys, block.first + row - block.query.start))
    return AttentionLayout(tuple(blocks), layout.causal)
