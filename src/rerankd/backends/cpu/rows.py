"""Rows between layers: a tensor, or a tensor in the blocked layout, which the GEMMs read and write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rerankd.backends.cpu.buffers import Buffer

COLUMN_BLOCK_BYTES = 64
SPARE_ROWS = 31
"""Rows of memory behind the last column block: GEMMs load 32 rows at a time, and use those that exist."""


class BlockedTensor:
    """Rows [count, width] in the blocked layout: column blocks, one after another, each with 64 bytes of every row.

    GEMMs read 16 adjacent rows of a column block as an AMX tile, and write a column block row by row.

    While operations that use the buffer are recorded and not computed yet, every method that reads or writes values
    raises RuntimeError; after an operation that failed to write the rows, for good.

    buffer: the memory of the rows, with SPARE_ROWS more behind the last column block
    address: the address of the first row's first value
    block_stride: bytes from a column block to the next
    """

    # Addresses rather than views of a tensor: making a view takes longer than computing some of the operations.
    __slots__ = ("address", "block_stride", "buffer", "count", "dtype", "width")

    def __init__(
        self, buffer: Buffer, dtype: torch.dtype, address: int, block_stride: int, count: int, width: int
    ) -> None:
        self.buffer = buffer
        self.dtype = dtype
        self.address = address
        self.block_stride = block_stride
        self.count = count
        self.width = width

    @classmethod
    def empty(
        cls, count: int, width: int, dtype: torch.dtype = torch.bfloat16, allocate: Callable[[int], Buffer] = Buffer
    ) -> BlockedTensor:
        """Rows without values. width: fills whole column blocks; allocate: a buffer of so many bytes"""
        # An odd number of lines a block: with a power of two, a row's blocks would share few sets of a cache.
        lines = (count + SPARE_ROWS) | 1
        buffer = allocate(width * dtype.itemsize * lines)
        return cls(buffer, dtype, buffer.address, lines * COLUMN_BLOCK_BYTES, count, width)

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.width

    def check(self) -> None:
        """RuntimeError where the rows cannot be used now."""
        pending = self.buffer.pending
        if pending is not None and pending.why is not None:
            raise RuntimeError(pending.why)

    @property
    def blocks(self) -> Tensor:
        """A view [width / values in 64 bytes, count, values in 64 bytes]. Its memory leaves the pool."""
        view = self._view()
        self.buffer.detach()
        return view

    def _view(self) -> Tensor:
        """`blocks`, valid as long as the buffer exists."""
        self.check()
        size = self.dtype.itemsize
        values = COLUMN_BLOCK_BYTES // size
        shape, strides = (self.width // values, self.count, values), (self.block_stride // size, values, 1)
        first = (self.address - self.buffer.address) // size
        return self.buffer.memory.view(self.dtype).as_strided(shape, strides, first)

    def __getitem__(self, rows: slice) -> BlockedTensor:
        """Some of the rows, as a view."""
        start, stop, _ = rows.indices(self.count)
        address, count = self.address + start * COLUMN_BLOCK_BYTES, max(stop - start, 0)
        return BlockedTensor(self.buffer, self.dtype, address, self.block_stride, count, self.width)

    def columns(self, columns: slice) -> BlockedTensor:
        """Some of the columns, as a view. ValueError where they do not fill whole column blocks."""
        values = COLUMN_BLOCK_BYTES // self.dtype.itemsize
        start, stop, _ = columns.indices(self.width)
        if start % values or stop % values:
            raise ValueError(f"A tensor in blocks of {values} columns cannot be cut at columns {start} and {stop}.")
        address = self.address + start // values * self.block_stride
        return BlockedTensor(self.buffer, self.dtype, address, self.block_stride, self.count, stop - start)

    def copy_(self, x: Tensor) -> None:
        """Copy the values of x [count, width]."""
        blocks = self._view()
        blocks.copy_(_as_blocks(x, blocks.shape[2]))

    def index_add_(self, rows: Tensor, addend: Tensor) -> None:
        """Add addend [n, width] to the rows with indices `rows` (int64 [n], without repetition)."""
        blocks = self._view()
        blocks.index_add_(1, rows, _as_blocks(addend, blocks.shape[2]))

    def to_dense(self) -> Tensor:
        """A copy as a tensor [count, width]."""
        return self._view().transpose(0, 1).clone(memory_format=torch.contiguous_format).view(self.shape)


Rows: TypeAlias = Tensor | BlockedTensor
"""Rows [rows, width] in the model's dtype."""


def columns(x: Rows, selection: slice) -> Rows:
    """Some of the columns, as a view."""
    return x.columns(selection) if isinstance(x, BlockedTensor) else x[:, selection]


def index_add(x: Rows, rows: Tensor, addend: Tensor) -> None:
    """Add addend [n, width] to the rows of x with indices `rows` (int64 [n], without repetition), in place."""
    if isinstance(x, BlockedTensor):
        x.index_add_(rows, addend)
    else:
        x.index_add_(0, rows, addend)


def to_dense(x: Rows) -> Tensor:
    """Rows as a tensor [rows, width]: x itself, or a copy."""
    return x.to_dense() if isinstance(x, BlockedTensor) else x


def _as_blocks(x: Tensor, values: int) -> Tensor:
    """A view [width / values, rows, values] of x [rows, width]."""
    return x.view(len(x), x.shape[1] // values, values).transpose(0, 1)
