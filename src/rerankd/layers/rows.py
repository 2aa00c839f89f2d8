"""Rows between layers, in the form in which the next product reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

STRIP_BYTES = 64
SPARE_ROWS = 31
"""Room behind rows in strips: products read 32 rows on end, and use those that are there."""


@dataclass(frozen=True, slots=True)
class StripRows:
    """Rows [count, width] in strips: 64 bytes of every row, then the next 64 of every row, and so on.

    Products read a strip's rows on end, 16 of them as a tile of AMX, and write it row after row.

    strips: [width / values in 64 bytes, count, values in 64 bytes], of which the last two dimensions are contiguous; a
        view of room for SPARE_ROWS more rows
    """

    strips: Tensor

    @classmethod
    def empty(cls, count: int, width: int, dtype: torch.dtype = torch.bfloat16) -> StripRows:
        """Room for rows that fill whole strips."""
        values = STRIP_BYTES // dtype.itemsize
        # An odd number of lines from strip to strip: a power of two would put a row's strips into few sets of a cache.
        room = torch.empty(width // values, (count + SPARE_ROWS) | 1, values, dtype=dtype)
        return cls(room[:, :count])

    def __len__(self) -> int:
        return self.strips.shape[1]

    @property
    def width(self) -> int:
        return self.strips.shape[0] * self.strips.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.width

    def __getitem__(self, rows: slice) -> StripRows:
        """Some of the rows, as a view."""
        return StripRows(self.strips[:, rows])

    def columns(self, columns: slice) -> StripRows:
        """Some of the columns, as a view; ValueError where they do not fill whole strips."""
        values = self.strips.shape[2]
        start, stop, _ = columns.indices(self.width)
        if start % values or stop % values:
            raise ValueError(f"Rows in strips of {values} columns cannot be cut at columns {start} and {stop}.")
        return StripRows(self.strips[start // values : stop // values])

    def chosen(self, rows: Tensor) -> StripRows:
        """The rows whose numbers `rows` (int64) has, copied."""
        out = StripRows.empty(len(rows), self.width, self.strips.dtype)
        out.strips.copy_(self.strips[:, rows])
        return out

    def copy_(self, x: Tensor) -> None:
        """Take over the values of x [count, width]."""
        self.strips.copy_(_in_strips(x, self.strips.shape[2]))

    def add_(self, rows: Tensor, addend: Tensor) -> None:
        """Add addend [n, width] to the rows whose numbers `rows` (int64 [n]) has, each there once."""
        self.strips.index_add_(1, rows, _in_strips(addend, self.strips.shape[2]))

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
