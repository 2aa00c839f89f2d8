"""What several formats share: integers packed into words, and scales for parts of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Unpack unsigned integers from int32 words, lowest bits first: [..., n] -> int32 [..., n * 32 / bits]."""
    if words.dtype != torch.int32:
        raise ModelError(f"it is packed as {str(words.dtype).removeprefix('torch.')}; only int32 is supported")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


@dataclass(frozen=True, slots=True)
class Grid:
    """The scales or zero points of a matrix [outputs, inputs], one for each part of the matrix.

    values: float32 [r, c]
    height: number of the matrix's rows for each row of `values`
    columns: the column of `values` for each column of the matrix, int64 [inputs]; None if `values` has one column
    """

    values: Tensor
    height: int
    columns: Tensor | None

    @classmethod
    def of(cls, values: Tensor, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Grid:
        """A grid whose parts follow from the shape of `values`: one value for the matrix, for each row, for each group
        of columns, or for each block. The last block may be smaller.

        shape: of the matrix, [outputs, inputs]
        block: the rows and columns of a block, for a grid of blocks

        Raises ModelError for values that do not fit the matrix.
        """
        values = numbers(values)
        if values.dim() < 2:
            values = values.reshape(-1, 1)
        parts = values.shape
        if len(parts) != 2:
            raise ModelError(f"it has scales of shape {list(parts)} for a matrix")
        columns = None if parts[1] == 1 else torch.arange(shape[1]) // _step(parts[1], shape[1], 1, block)
        return cls(values, _step(parts[0], shape[0], 0, block), columns)

    @classmethod
    def of_groups(cls, values: Tensor, outputs: int, groups: Tensor) -> Grid:
        """A grid with a value for each row and each group of columns.

        values: [outputs, number of groups]
        groups: the group of each column, [inputs]

        Raises ModelError for values or groups that do not fit.
        """
        if values.dim() != 2 or values.shape[0] != outputs or groups.dim() != 1:
            raise ModelError(f"it has scales of shape {list(values.shape)} for {outputs} rows")
        if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < values.shape[1]:
            raise ModelError(f"its columns have groups {int(groups.min())} to {int(groups.max())} of {values.shape[1]}")
        return cls(numbers(values), 1, groups.long())

    def __call__(self, rows: slice) -> Tensor:
        """The values for some rows of the matrix, float32 [rows, inputs], or [rows, 1] if each row has one value."""
        values = self.values[torch.arange(rows.start, rows.stop) // self.height]
        return values if self.columns is None else values[:, self.columns]


def numbers(values: Tensor) -> Tensor:
    """Stored scales or zero points in float32."""
    return values.to(torch.float32)


def _step(parts: int, whole: int, axis: int, block: tuple[int, int] | None) -> int:
    """Number of the matrix's rows (axis 0) or columns (axis 1) for each value. Raises ModelError if they do not fit."""
    if parts == 1:
        return whole
    if block is not None and parts == -(-whole // block[axis]):
        return block[axis]
    if parts == 0 or whole % parts:
        raise ModelError(f"it has {parts} scales for {whole} {('rows', 'columns')[axis]}")
    return whole // parts
