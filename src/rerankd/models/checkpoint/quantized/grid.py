"""Integers packed into words, and scales for parts of a matrix, which the formats have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError


def unpacked(words: Tensor, bits: int) -> Tensor:
    """The unsigned integers in int32 words, the lowest bits first: [..., n] -> int32 [..., n * 32 / bits]."""
    if words.dtype != torch.int32:
        raise ModelError(f"packed as {str(words.dtype).removeprefix('torch.')}; only int32 is supported")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers for parts of a matrix [outputs, inputs]: its scales, or its zero points.

    values: float32 [r, c]
    height: rows of the matrix for one of `values`
    columns: for each column of the matrix its column of `values`, int64 [inputs]; None where one column is for all
    """

    values: Tensor
    height: int
    columns: Tensor | None

    @classmethod
    def of(cls, values: Tensor, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Grid:
        """A grid whose parts are told from its shape: one number for all, for each row, for groups of columns, or for
        blocks, the last of which may be cut off.

        block: the rows and columns of a block, for a grid of blocks

        Raises ModelError for values that cannot be laid over a matrix of `shape`.
        """
        values = numbers(values)
        if values.dim() < 2:
            values = values.reshape(-1, 1)
        parts = values.shape
        if len(parts) != 2:
            raise ModelError(f"numbers of shape {list(parts)} for a matrix")
        columns = None if parts[1] == 1 else torch.arange(shape[1]) // _step(parts[1], shape[1], 1, block)
        return cls(values, _step(parts[0], shape[0], 0, block), columns)

    @classmethod
    def of_groups(cls, values: Tensor, outputs: int, groups: Tensor) -> Grid:
        """A grid of a number for each row and group of columns, [outputs, number of groups].

        groups: the group of each column, [inputs]
        """
        if values.dim() != 2 or values.shape[0] != outputs or groups.dim() != 1:
            raise ModelError(f"numbers of shape {list(values.shape)} for {outputs} rows")
        if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < values.shape[1]:
            raise ModelError(f"columns of groups {int(groups.min())} to {int(groups.max())} of {values.shape[1]}")
        return cls(numbers(values), 1, groups.long())

    def __call__(self, rows: slice) -> Tensor:
        """The numbers for some rows of the matrix: float32 [rows, inputs], or [rows, 1] for one number a row."""
        chosen = self.values[torch.arange(rows.start, rows.stop) // self.height]
        return chosen if self.columns is None else chosen[:, self.columns]


def numbers(values: Tensor) -> Tensor:
    """Stored scales or zero points in float32."""
    return values.to(torch.float32)


def _step(parts: int, whole: int, axis: int, block: tuple[int, int] | None) -> int:
    """Rows (or columns) of the matrix for one number."""
    if parts == 1:
        return whole
    if block is not None and parts == -(-whole // block[axis]):
        return block[axis]
    if parts == 0 or whole % parts:
        raise ModelError(f"{parts} numbers for {whole} {('rows', 'columns')[axis]}")
    return whole // parts
