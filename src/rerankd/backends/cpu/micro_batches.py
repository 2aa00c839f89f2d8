"""A layout cut into micro-batches of documents, so that the rows of a micro-batch stay in the caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.core import Span
from rerankd.layers.layout import AttentionLayout, Block


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some blocks of a layout, with all rows that only these blocks need.

    Layers compute one micro-batch after another and reuse one buffer for keys and values. The first `kept` rows of the
    buffer stay from the micro-batch before: the shared prefix of documents in both.

    keys: the packed rows whose keys and values are computed
    queries: the query rows
    kept: rows at the front of the buffer that are computed already
    key_count: rows of the buffer, kept ones included
    layout: the blocks, with query rows counted from `queries.start` and key rows from the front of the buffer
    """

    keys: slice
    queries: slice
    kept: int
    key_count: int
    layout: AttentionLayout


def in_micro_batches(layout: AttentionLayout, rows: int | None) -> tuple[MicroBatch, ...]:
    """The layout in micro-batches of at most `rows` packed rows (None: any number); a longer document has its own.

    The documents of a prefix are divided only among micro-batches that begin with the prefix, since only the front of
    the buffer is kept.
    """
    batches: list[MicroBatch] = []
    blocks = layout.blocks
    first, end = 0, 0
    while first < len(blocks):
        start, kept = _start(blocks[first], end)
        stop = first + 1
        while stop < len(blocks) and (
            rows is None or _end(blocks[stop]) - start <= rows or _inseparable(blocks[stop - 1], blocks[stop])
        ):
            stop += 1
        if stop < len(blocks):
            stop = _before_cut_prefix(blocks, start, stop)
        end = _end(blocks[stop - 1])
        batches.append(_micro_batch(layout, blocks[first:stop], start, end, kept))
        first = stop
    return tuple(batches)


def _end(block: Block) -> int:
    """Behind the last row of a block; the last of its queries may be no keys."""
    return max(block.own.stop, block.query.stop)


def _inseparable(block: Block, after: Block) -> bool:
    """Whether a cut between the two blocks would divide a document or a prefix, of which only some rows are queries."""
    end = _end(block)
    return after.own.start < end or after.shared.start < end < after.shared.stop


def _before_cut_prefix(blocks: Sequence[Block], start: int, stop: int) -> int:
    """`stop`, or the first block of the documents whose prefix would lie in the middle of the micro-batch before."""
    shared = blocks[stop].shared
    if start < shared.start < _end(blocks[stop - 1]):
        while _end(blocks[stop - 1]) > shared.start:
            stop -= 1
    return stop


def _start(block: Block, end: int) -> tuple[int, int]:
    """The first row from `end` on that a block needs, and the number of rows before it that stay in the buffer."""
    if len(block.shared) and block.shared.start >= end:
        return block.shared.start, 0
    return max(block.own.start, end), len(block.shared)


def _micro_batch(layout: AttentionLayout, blocks: Sequence[Block], start: int, end: int, kept: int) -> MicroBatch:
    first_query = blocks[0].query.start

    def moved(span: Span) -> Span:
        by = kept - start
        return Span(span.start + by, span.stop + by)

    def placed(block: Block) -> Block:
        query = Span(block.query.start - first_query, block.query.stop - first_query)
        is_kept = block.shared.start < start
        shared = Span(0, len(block.shared)) if is_kept else moved(block.shared)
        return Block(query, shared, moved(block.own), block.first)

    # Blocks from the first row on stay where they are.
    placed_blocks = map(placed, blocks) if start or first_query else blocks
    return MicroBatch(
        keys=slice(start, end),
        queries=slice(first_query, blocks[-1].query.stop),
        kept=kept,
        key_count=kept + end - start,
        layout=AttentionLayout(tuple(placed_blocks), layout.causal),
    )
