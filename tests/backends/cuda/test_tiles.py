"""Tiles hold every query row once, with keys that cover what each of their rows sees."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd.backends.cuda import tiles as tiles_module
from rerankd.backends.cuda.tiles import HostTiles, Tiling
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import AttentionLayout, causal_layout, kept_layout, separate_layout
from tests.backends.test_attention import IDS, LAYOUTS, packed_groups, visible

QUERIES = st.sampled_from([1, 3, 16])


def seen_by_tiles(layout: AttentionLayout, keys: int, queries: int) -> numpy.ndarray:
    """Which of `keys` packed rows the kernel shows each query row, as the kernel reads tiles."""
    host = HostTiles.of(layout, queries)
    tiles = host.on(torch.from_numpy(host.values))
    seen = numpy.zeros((layout.query_rows, keys), dtype=bool)
    found = []
    for first, stop, low, high, shared_first, shared_stop in tiles.table.tolist():
        assert 0 < stop - first <= queries
        for row in range(first, stop):
            found.append(row)
            seen[row, shared_first:shared_stop] = True
            # The kernel reads no own key outside of its tile's range.
            seen[row, max(low, tiles.first[row]) : min(high, tiles.stop[row])] = True
    assert found == list(range(layout.query_rows))
    return seen


@pytest.mark.parametrize("layout_of", LAYOUTS, ids=IDS)
def test_rows_see_what_the_layout_says(layout_of: object) -> None:
    @given(packed_groups(), QUERIES)
    def check(groups: list[PackedGroup], queries: int) -> None:
        layout: AttentionLayout = layout_of(groups)  # type: ignore[operator]
        keys = groups[-1].suffixes[-1].stop
        assert (seen_by_tiles(layout, keys, queries) == visible(layout, keys).numpy()).all()

    check()


@given(packed_groups(), QUERIES)
def test_places_are_places_among_the_keys_that_a_row_sees(groups: list[PackedGroup], queries: int) -> None:
    for layout in (layout_of(groups) for layout_of in LAYOUTS[:2]):
        host = HostTiles.of(layout, queries)
        tiles = host.on(torch.from_numpy(host.values))
        for block in layout.blocks:
            rows = range(block.query.start, block.query.stop)
            assert tiles.place[rows.start : rows.stop].tolist() == [block.first + i for i in range(len(rows))]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_keys_of_several_documents_in_a_tile_are_bounded(lengths: list[int], most: int) -> None:
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row, row + length))
        row += length
    whole = separate_layout(spans)
    for layout in (whole, kept_layout(whole, [span.start for span in spans])):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles_module, "MOST_KEYS", most)
            host = HostTiles.of(layout, 16)
        for first, stop, low, high, *_ in host.values[: host.tiles * 6].reshape(-1, 6).tolist():
            blocks = [b for b in layout.blocks if b.query.start < stop and b.query.stop > first]
            assert high - low <= max(most, max(len(block.own) for block in blocks))


def test_documents_of_one_prefix_share_tiles_and_others_do_not() -> None:
    groups = [
        PackedGroup(Span(0, 3), tuple(Span(3 + i, 4 + i) for i in range(8))),
        PackedGroup(Span(11, 13), (Span(13, 15),)),
    ]
    host = HostTiles.of(causal_layout(groups), 16)
    table = host.values[: host.tiles * 6].reshape(-1, 6).tolist()
    assert [row[:2] for row in table] == [[0, 3], [3, 11], [11, 13], [13, 15]]
    assert [row[4:] for row in table] == [[0, 0], [0, 3], [0, 0], [11, 13]]


def test_the_layouts_tensors_are_made_once() -> None:
    layout = separate_layout([Span(0, 5)])
    tiling = Tiling(torch.device("cpu"))
    assert layout.derived(tiling) is layout.derived(Tiling(torch.device("cpu")))
