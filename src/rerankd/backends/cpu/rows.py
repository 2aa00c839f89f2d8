"""Rows between layers, in the form in which the next product reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

STRIP_BYTES = 64
SPARE_ROWS = 31
"""Room behind rows in strips: products read 32 rows on end, and use those that are there."""


class Pending:
    """What recorded operations say of the rows that they use; one object for all of these rows.

    why: a sentence that says why the rows cannot be used now; None where they can
    """

    __slots__ = ("why",)

    def __init__(self, why: str | None) -> None:
        self.why = why


class Room:
    """Memory of `size` bytes that rows lie in.

    at: its address
    rooms: where this came from, and goes back to when nothing refers to the room any more; or None
    pending: what the operations say that used the room last; None before the first
    """

    __slots__ = ("at", "memory", "pending", "rooms", "size")

    def __init__(self, size: int, rooms: Rooms | None = None) -> None:
        self.rooms: Rooms | None = None  # until there is something to give back
        self.memory = torch.empty(size, dtype=torch.uint8) if rooms is None else rooms.take(size)
        self.at = self.memory.data_ptr()
        self.size = size
        self.pending = None if rooms is None else rooms.pending
        self.rooms = rooms

    def keep(self) -> None:
        """Never go back to where this came from, since a tensor may refer to the memory longer than the room does."""
        if self.rooms is not None:
            self.rooms.forget(self.size)
            self.rooms = None

    def __del__(self) -> None:
        if self.rooms is not None:
            self.rooms.give_back(self.memory)


class Rooms:
    """Memory for one batch's rows after another's.

    Freed in between, large blocks would go back to the kernel, whatever the C library is asked to keep: each thread but
    the first gets its memory in heaps of 64 MB, and an empty heap goes. Every page then costs a fault again.

    pending: of rooms that are lent now; set while operations are recorded, since one of them may still read the memory
    """

    def __init__(self) -> None:
        # By size, the one asked for the longest ago first.
        self._free: dict[int, list[Tensor]] = {}
        self._lent = self._kept = self._most = 0
        self.pending: Pending | None = None

    def lend(self, size: int) -> Room:
        """Room for `size` bytes and up to a quarter more, so that rows that are about as many get the same."""
        step = 1 << max(size.bit_length() - 3, 6)
        return Room((size + step - 1) // step * step, self)

    def take(self, size: int) -> Tensor:
        """uint8 [size]."""
        unused = self._free[size] = self._free.pop(size, [])
        if unused:
            memory = unused.pop()
            self._kept -= size
        else:
            memory = torch.empty(size, dtype=torch.uint8)
        self._lent += size
        self._most = max(self._most, self._lent)
        return memory

    def give_back(self, memory: Tensor) -> None:
        size = len(memory)
        self._free[size].append(memory)
        self._lent -= size
        self._kept += size

    def forget(self, size: int) -> None:
        """Room of `size` bytes will not come back."""
        self._lent -= size

    def trim(self) -> None:
        """Let go of what has not been asked for the longest, until there is at most a quarter more than was ever lent
        at a time: by that quarter small batches do not cost large ones theirs."""
        for size, unused in self._free.items():
            while unused and self._lent + self._kept > self._most * 5 // 4:
                unused.pop()
                self._kept -= size


class StripRows:
    """Rows [count, width] in strips: 64 bytes of every row, then the next 64 of every row, and so on.

    Products read a strip's rows on end, 16 of them as a tile of AMX, and write it row after row.

    While operations that read or write the rows are recorded and not computed yet, all that reads or writes values here
    raises RuntimeError; and for rows that such an operation never came to write, ever after.

    room: where the rows lie, with SPARE_ROWS more behind the last strip
    at: the address of the first row's first value
    strip: bytes between two strips
    """

    # Addresses, since views of a tensor would take more time than some of what is computed of them.
    __slots__ = ("at", "count", "dtype", "room", "strip", "width")

    def __init__(self, room: Room, dtype: torch.dtype, at: int, strip: int, count: int, width: int) -> None:
        self.room = room
        self.dtype = dtype
        self.at = at
        self.strip = strip
        self.count = count
        self.width = width

    @classmethod
    def empty(
        cls, count: int, width: int, dtype: torch.dtype = torch.bfloat16, room_of: Callable[[int], Room] = Room
    ) -> StripRows:
        """Room for rows that fill whole strips."""
        # An odd number of lines from strip to strip: a power of two would put a row's strips into few sets of a cache.
        lines = (count + SPARE_ROWS) | 1
        room = room_of(width * dtype.itemsize * lines)
        return cls(room, dtype, room.at, lines * STRIP_BYTES, count, width)

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        return self.count, self.width

    def check(self) -> None:
        """RuntimeError where the rows cannot be used now."""
        pending = self.room.pending
        if pending is not None and pending.why is not None:
            raise RuntimeError(pending.why)

    @property
    def strips(self) -> Tensor:
        """[width / values in 64 bytes, count, values in 64 bytes], as a view, whose memory is never lent again."""
        view = self._view()
        self.room.keep()
        return view

    def _view(self) -> Tensor:
        """`strips` for as long as the room is there."""
        self.check()
        size = self.dtype.itemsize
        values = STRIP_BYTES // size
        shape, strides = (self.width // values, self.count, values), (self.strip // size, values, 1)
        return self.room.memory.view(self.dtype).as_strided(shape, strides, (self.at - self.room.at) // size)

    def __getitem__(self, rows: slice) -> StripRows:
        """Some of the rows, as a view."""
        start, stop, _ = rows.indices(self.count)
        at, count = self.at + start * STRIP_BYTES, max(stop - start, 0)
        return StripRows(self.room, self.dtype, at, self.strip, count, self.width)

    def columns(self, columns: slice) -> StripRows:
        """Some of the columns, as a view; ValueError where they do not fill whole strips."""
        values = STRIP_BYTES // self.dtype.itemsize
        start, stop, _ = columns.indices(self.width)
        if start % values or stop % values:
            raise ValueError(f"Rows in strips of {values} columns cannot be cut at columns {start} and {stop}.")
        at = self.at + start // values * self.strip
        return StripRows(self.room, self.dtype, at, self.strip, self.count, stop - start)

    def copy_(self, x: Tensor) -> None:
        """Take over the values of x [count, width]."""
        strips = self._view()
        strips.copy_(_in_strips(x, strips.shape[2]))

    def add_(self, rows: Tensor, addend: Tensor) -> None:
        """Add addend [n, width] to the rows whose numbers `rows` (int64 [n]) has, each there once."""
        strips = self._view()
        strips.index_add_(1, rows, _in_strips(addend, strips.shape[2]))

    def tensor(self) -> Tensor:
        """A copy of the same row by row: [count, width]."""
        return self._view().transpose(0, 1).clone(memory_format=torch.contiguous_format).view(self.shape)


Rows: TypeAlias = Tensor | StripRows
"""Rows [rows, width] in the model's dtype."""


def columns(x: Rows, wanted: slice) -> Rows:
    """Some of the columns, as a view."""
    return x.columns(wanted) if isinstance(x, StripRows) else x[:, wanted]


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
