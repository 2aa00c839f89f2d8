"""Rows between layers, in the form in which the next product reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

BLOCK_ROWS = 32
"""Tiled rows are stored up to a multiple of so many, and cut at multiples of so many."""

TILE_ROWS, TILE_COLUMNS = 16, 32


@dataclass(frozen=True, slots=True)
class TiledRows:
    """Rows [count, width] in bfloat16, tile by tile, as products by AMX read them.

    tiles: [count up to a multiple of 32, width], in which each run of 16 rows lies as [width / 32, 16, 32]
    """

    tiles: Tensor
    count: int

    @classmethod
    def empty(cls, count: int, width: int) -> TiledRows:
        """Room for rows whose width is a multiple of 32."""
        return cls(torch.empty(-(-count // BLOCK_ROWS) * BLOCK_ROWS, width, dtype=torch.bfloat16), count)

    def __len__(self) -> int:
        return self.count

    @property
    def width(self) -> int:
        return self.tiles.shape[1]

    def part(self, rows: slice) -> TiledRows:
        """Some of the rows, as a view, from a multiple of 32 on."""
        start, stop, _ = rows.indices(self.count)
        if start % BLOCK_ROWS:
            raise ValueError(f"Tiled rows can be cut at multiples of {BLOCK_ROWS}; {start} is none.")
        return TiledRows(self.tiles[start : -(-stop // BLOCK_ROWS) * BLOCK_ROWS], stop - start)

    def copy_(self, x: Tensor) -> None:
        """Take over the values of x [count, width]."""
        padded = x.new_zeros(self.tiles.shape)
        padded[: self.count] = x
        tiles = self.tiles.view(-1, self.width // TILE_COLUMNS, TILE_ROWS, TILE_COLUMNS)
        tiles.copy_(padded.view(-1, TILE_ROWS, self.width // TILE_COLUMNS, TILE_COLUMNS).transpose(1, 2))

    def tensor(self) -> Tensor:
        """The same row by row: [count, width]."""
        tiles = self.tiles.view(-1, self.width // TILE_COLUMNS, TILE_ROWS, TILE_COLUMNS)
        return tiles.transpose(1, 2).reshape(-1, self.width)[: self.count]


Rows: TypeAlias = Tensor | TiledRows
"""Rows [rows, width] that are made for a product to read."""


def part(x: Rows, rows: slice) -> Rows:
    """Some of the rows, as a view."""
    return x.part(rows) if isinstance(x, TiledRows) else x[rows]


def plain(x: Rows) -> Tensor:
    """Rows as a tensor [rows, width]."""
    return x.tensor() if isinstance(x, TiledRows) else x
