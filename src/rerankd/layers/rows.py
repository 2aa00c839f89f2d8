"""Rows between layers, in the form in which the next product reads them."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

STRIP_BYTES = 64
SPARE_ROWS = 31
"""Room behind rows in strips: products read 32 rows on end, and use those that are there."""


class StripRows:
    """Rows [count, width] in strips: 64 bytes of every row, then the next 64 of every row, and so on.

    Products read a strip's rows on end, 16 of them as a tile of AMX, and write it row after row.

    room: the memory that the rows lie in, with SPARE_ROWS more behind the last strip
    at: the address of the first row's first value
    strip: bytes between two strips
    """

    # Addresses, since views of a tensor would take more time than some of what is computed of them.
    __slots__ = ("at", "count", "room", "strip", "width")

    def __init__(self, room: Tensor, at: int, strip: int, count: int, width: int) -> None:
        self.room = room
        self.at = at
        self.strip = strip
        self.count = count
        self.width = width

    @classmethod
    def empty(cls, count: int, width: int, dtype: torch.dtype = torch.bfloat16) -> StripRows:
        """Room for rows that fill whole strips."""
        values = STRIP_BYTES // dtype.itemsize
        # An odd number of lines from strip to strip: a power of two would put a row's strips into few sets of a cache.
        lines = (count + SPARE_ROWS) | 1
        room = torch.empty(width // values, lines, values, dtype=dtype)
        return cls(room, room.data_ptr(), lines * STRIP_BYTES, count, width)

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.width

    @property
    def dtype(self) -> torch.dtype:
        return self.room.dtype

    @property
    def strips(self) -> Tensor:
        """[width / values in 64 bytes, count, values in 64 bytes], as a view."""
        size = self.room.dtype.itemsize
        values = STRIP_BYTES // size
        shape, strides = (self.width // values, self.count, values), (self.strip // size, values, 1)
        return self.room.as_strided(shape, strides, (self.at - self.room.data_ptr()) // size)

    def __getitem__(self, rows: slice) -> StripRows:
        """Some of the rows, as a view."""
        start, stop, _ = rows.indices(self.count)
        return StripRows(self.room, self.at + start * STRIP_BYTES, self.strip, max(stop - start, 0), self.width)

    def columns(self, columns: slice) -> StripRows:
        """Some of the columns, as a view; ValueError where they do not fill whole strips."""
        values = STRIP_BYTES // self.room.dtype.itemsize
        start, stop, _ = columns.indices(self.width)
        if start % values or stop % values:
            raise ValueError(f"Rows in strips of {values} columns cannot be cut at columns {start} and {stop}.")
        return StripRows(self.room, self.at + start // values * self.strip, self.strip, self.count, stop - start)

    def chosen(self, rows: Tensor) -> StripRows:
        """The rows whose numbers `rows` (int64) has, copied."""
        out = StripRows.empty(len(rows), self.width, self.dtype)
        out.strips.copy_(self.strips[:, rows])
        return out

    def copy_(self, x: Tensor) -> None:
        """Take over the values of x [count, width]."""
        strips = self.strips
        strips.copy_(_in_strips(x, strips.shape[2]))

    def add_(self, rows: Tensor, addend: Tensor) -> None:
        """Add addend [n, width] to the rows whose numbers `rows` (int64 [n]) has, each there once."""
        strips = self.strips
        strips.index_add_(1, rows, _in_strips(addend, strips.shape[2]))

    def tensor(self) -> Tensor:
        """The same row by row: [count, width]."""
        return self.strips.transpose(0, 1).reshape(self.shape)


Rows: TypeAlias = Tensor | StripRows
"""Rows [rows, width] in the model's dtype."""


def columns(x: Rows, wanted: slice) -> Rows:
    """Some of the columns, as a view."""
    return x.columns(wanted) if isinstance(x, StripRows) else x[:, wanted]


def chosen(x: Rows, rows: Tensor) -> Rows:
    """The rows whose numbers `rows` (int64) has, copied."""
    return x.chosen(rows) if isinstance(x, StripRows) else x[rows]


def add(x: Rows, rows: Tensor, addend: Tensor) -> None:
    """Add addend [n, width] to the rows of x whose numbers `rows` (int64 [n]) has, each there once."""
    if isinstance(x, StripRows):
        x.add_(rows, addend)
    else:
        x.index_add_(0, rows, addend)


def plain(x: Rows) -> Tensor:
    """Rows as a tensor [rows, width]."""
    return x.tensor() if isinstance(x, StripRows) else x


def _in_strips(x: Tensor, values: int) -> Tensor:
    """[rows, width] -> [width / values, rows, values], as a view."""
    return x.view(len(x), x.shape[1] // values, values).transpose(0, 1)
