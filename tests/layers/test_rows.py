"""Rows in tiles hold what rows in lines hold."""

from __future__ import annotations

import pytest
import torch

from rerankd.layers.rows import TiledRows, part, plain


@pytest.mark.parametrize("count", [1, 15, 16, 33, 64, 100])
@pytest.mark.parametrize("width", [32, 160])
def test_tiled_rows_keep_values_and_order(count: int, width: int) -> None:
    x = torch.randn(count, width).bfloat16()
    rows = TiledRows.empty(count, width)
    rows.copy_(x)
    assert (len(rows), rows.width) == (count, width)
    assert torch.equal(rows.tensor(), x)
    for start in range(0, count, 32):
        assert torch.equal(plain(part(rows, slice(start, start + 40))), x[start : start + 40])
    # Tile by tile: 16 rows of 32 columns are 512 values on end.
    padded = torch.zeros(32, 32).bfloat16()
    padded[: min(count, 16)] = x[:16, :32]
    assert torch.equal(rows.tiles.flatten()[:512], padded[:16].flatten())


def test_a_part_is_a_view() -> None:
    rows = TiledRows.empty(64, 32)
    rows.copy_(torch.zeros(64, 32))
    rows.part(slice(32, 64)).copy_(torch.ones(32, 32))
    assert torch.equal(rows.tensor(), torch.arange(64)[:, None].ge(32).expand(64, 32).bfloat16())


def test_rows_are_not_cut_through_a_block() -> None:
    with pytest.raises(ValueError, match="multiples of 32; 16 is none"):
        TiledRows.empty(64, 32).part(slice(16, 64))
