"""A layout as the attention kernel reads it: tiles of query rows, and the range of keys of each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from rerankd.layers.layout import AttentionLayout, Block

MOST_KEYS = 1024
"""The most own keys of a tile of several documents. With more, many short documents would be few, long programs."""
FIELDS = 6
QUERIES, KEPT_QUERIES = 64, 16
"""Rows of a tile: in all layers, and where there are few rows, as in a last layer that computes one a document."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """int32 tensors on one device.

    table: [tiles, 6], for each tile the query rows (first, stop), the range of own keys of all its rows, and the keys
        of the prefix that all its rows share; a tile without rows is skipped
    first, stop: [query rows], the own keys of a row, causality included
    place: [query rows], the place of a row among the keys that it sees
    queries: the most rows of a tile
    """

    table: Tensor
    first: Tensor
    stop: Tensor
    place: Tensor
    queries: int


@dataclass(frozen=True, slots=True)
class HostTiles:
    """`Tiles` in the host's memory, as one array: `table`, then `first`, `stop` and `place` of each row."""

    values: NDArray[numpy.int32]
    tiles: int
    rows: int
    queries: int

    @classmethod
    def of(cls, layout: AttentionLayout, queries: int | None = None) -> HostTiles:
        """The tiles of a layout, of `queries` rows each; None for a number that suits the size of the layout."""
        blocks, rows = layout.blocks, layout.query_rows
        lengths = numpy.array([len(block.query) for block in blocks], dtype=numpy.int64)
        if queries is None:
            queries = KEPT_QUERIES if rows <= len(blocks) * 2 else QUERIES
        table = [tile for run in _runs(blocks) for tile in _tiles(run, layout.causal, queries)]
        bounds = numpy.array(
            [(b.own.start, b.own.stop, b.first, b.query.start, b.query.stop) for b in blocks], dtype=numpy.int32
        ).reshape(-1, 5)
        first, stop, place, start, end = numpy.repeat(bounds, lengths, axis=0).T
        row = numpy.arange(rows, dtype=numpy.int32)
        if layout.causal:
            stop = stop - (end - row) + 1
        values = numpy.concatenate(
            [numpy.array(table, dtype=numpy.int32).reshape(-1), first, stop, place + row - start]
        ).astype(numpy.int32, copy=False)
        return cls(values, len(table), rows, queries)

    def on(self, values: Tensor) -> Tiles:
        """Views of `values`: the same array on a device."""
        cut = self.tiles * FIELDS
        first, stop, place = values[cut : cut + 3 * self.rows].view(3, self.rows)
        return Tiles(values[:cut].view(self.tiles, FIELDS), first, stop, place, self.queries)


@dataclass(frozen=True, slots=True)
class Tiling:
    """Makes the tiles of a layout on one device, once for all layers: `AttentionLayout.derived` calls it."""

    device: torch.device

    def __call__(self, layout: AttentionLayout) -> Tiles:
        """One copy to the device."""
        host = HostTiles.of(layout)
        values = torch.from_numpy(host.values)
        if self.device.type == "cuda":
            values = values.pin_memory()
        return host.on(values.to(self.device, non_blocking=True))


def _runs(blocks: tuple[Block, ...]) -> Iterator[list[Block]]:
    """Neighbours that share a prefix, or that share none."""
    run: list[Block] = []
    for block in blocks:
        if run and (block.shared.start, block.shared.stop) != (run[0].shared.start, run[0].shared.stop):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _tiles(run: list[Block], causal: bool, queries: int) -> Iterator[tuple[int, ...]]:
    """Tiles of at most `queries` rows over the blocks of a run, which may end in the middle of a block."""
    shared = run[0].shared
    first = stop = low = high = 0  # the tile: its rows, its own keys
    for block in run:
        row = block.query.start
        while row < block.query.stop:
            if first < stop and (stop - first == queries or block.own.stop - low > MOST_KEYS):
                yield first, stop, low, high, shared.start, shared.stop
                first = stop
            if first == stop:
                first, low = row, block.own.start
            stop = min(block.query.stop, first + queries)
            # The last row of a causal block sees all of its keys, the row before it all but one.
            high = block.own.stop - (block.query.stop - stop if causal else 0)
            row = stop
    if first < stop:
        yield first, stop, low, high, shared.start, shared.stop
