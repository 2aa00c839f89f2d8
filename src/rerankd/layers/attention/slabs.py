"""A layout cut into slabs: documents that go through a layer together, so that their rows stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.core import Span
from rerankd.layers.attention.layout import AttentionLayout, Block


@dataclass(frozen=True, slots=True)
class Slab:
    """Some of a layout's blocks, with all rows that only they need.

    Layers compute slab after slab and reuse one room for keys and values. What a slab has of them is `kept` rows that
    the slab before it left at the front (the shared prefix of documents that are cut apart), then `keys`' own.

    keys: the packed rows whose keys and values are computed
    queries: the query rows
    kept: rows at the front that are there already
    key_count: rows of keys and values, kept ones and all
    layout: the blocks, with query rows counted from `queries.start` and key rows from the front
    """

    keys: slice
    queries: slice
    kept: int
    key_count: int
    layout: AttentionLayout


def in_slabs(layout: AttentionLayout, rows: int | None) -> tuple[Slab, ...]:
    """The layout in slabs of at most `rows` packed rows, a longer document in one of its own; None for any number.

    The documents of one prefix are cut apart only in slabs that begin with it: only what lies at the front is kept.
    """
    slabs: list[Slab] = []
    blocks = layout.blocks
    first, start, kept = 0, 0, 0
    while first < len(blocks):
        stop = first + 1
        while stop < len(blocks) and (rows is None or blocks[stop].own.stop - start <= rows):
            stop += 1
        if stop < len(blocks):
            stop = _before_cut_prefix(blocks, start, stop)
        end = blocks[stop - 1].own.stop
        slabs.append(_slab(layout, blocks[first:stop], start, end, kept))
        first, start = stop, end
        kept = _kept(blocks[stop], end) if stop < len(blocks) else 0
    return tuple(slabs)


def _before_cut_prefix(blocks: Sequence[Block], start: int, stop: int) -> int:
    """`stop`, or the first block of the documents whose prefix the cut would leave behind in the middle of a slab."""
    shared = blocks[stop].shared
    if start < shared.start < blocks[stop - 1].own.stop:
        while blocks[stop - 1].own.stop > shared.start:
            stop -= 1
    return stop


def _kept(block: Block, end: int) -> int:
    return len(block.shared) if block.shared.start < end else 0


def _slab(layout: AttentionLayout, blocks: Sequence[Block], start: int, end: int, kept: int) -> Slab:
    first_query = blocks[0].query.start

    def moved(span: Span) -> Span:
        by = kept - start
        return Span(span.start + by, span.stop + by)

    def placed(block: Block) -> Block:
        query = Span(block.query.start - first_query, block.query.stop - first_query)
        is_kept = block.shared.start < start
        return Block(query, Span(0, len(block.shared)) if is_kept else moved(block.shared), moved(block.own))

    return Slab(
        keys=slice(start, end),
        queries=slice(first_query, blocks[-1].query.stop),
        kept=kept,
        key_count=kept + end - start,
        layout=AttentionLayout(tuple(map(placed, blocks)), layout.causal),
    )
