"""Buffers of rows, and the pool that keeps them from one batch to the next."""

from __future__ import annotations

import torch
from torch import Tensor


class Pending:
    """Whether buffers can be used now. One object serves all buffers that recorded operations use in the same way.

    why: a sentence that says why the buffers cannot be used now; None where they can
    """

    __slots__ = ("why",)

    def __init__(self, why: str | None) -> None:
        self.why = why


class Buffer:
    """Memory of `size` bytes.

    address: the address of the first byte
    pool: the pool that gets the memory back once nothing refers to the buffer; None for memory of no pool
    pending: set by recorded operations that use the buffer; None before the first
    """

    __slots__ = ("address", "memory", "pending", "pool", "size")

    def __init__(self, size: int, pool: BufferPool | None = None) -> None:
        self.pool: BufferPool | None = None  # `__del__` reads it, should the next line raise
        self.memory = torch.empty(size, dtype=torch.uint8) if pool is None else pool.take(size)
        self.address = self.memory.data_ptr()
        self.size = size
        self.pending = None if pool is None else pool.pending
        self.pool = pool

    def detach(self) -> None:
        """Take the memory out of the pool, since a tensor may refer to the memory for longer than the buffer exists."""
        if self.pool is not None:
            self.pool.forget(self.size)
            self.pool = None

    def __del__(self) -> None:
        if self.pool is not None:
            self.pool.release(self.memory)


class BufferPool:
    """Buffers that one batch after another uses.

    glibc would return freed blocks of this size to the kernel, whatever its options: each thread but the first gets its
    memory in heaps of 64 MB, and an empty heap is unmapped. Every page would then cost a page fault in the next batch.

    pending: the state of buffers acquired from now on. Set while operations are recorded, since one of them may still
        read the memory of a buffer that was released.
    """

    def __init__(self) -> None:
        # By size; the size that was acquired last stands last.
        self._unused: dict[int, list[Tensor]] = {}
        self._used_bytes = self._unused_bytes = self._peak_bytes = 0
        self.pending: Pending | None = None

    def acquire(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes and at most a quarter more, so that batches of like sizes share buffers."""
        step = 1 << max(size.bit_length() - 3, 6)
        return Buffer((size + step - 1) // step * step, self)

    def take(self, size: int) -> Tensor:
        """Memory for a buffer: uint8 [size]."""
        unused = self._unused[size] = self._unused.pop(size, [])
        if unused:
            memory = unused.pop()
            self._unused_bytes -= size
        else:
            memory = torch.empty(size, dtype=torch.uint8)
        self._used_bytes += size
        self._peak_bytes = max(self._peak_bytes, self._used_bytes)
        return memory

    def release(self, memory: Tensor) -> None:
        """Keep the memory of a buffer for the next one."""
        size = len(memory)
        self._unused[size].append(memory)
        self._used_bytes -= size
        self._unused_bytes += size

    def forget(self, size: int) -> None:
        """Count `size` bytes as used no longer; their memory does not come back."""
        self._used_bytes -= size

    def trim(self) -> None:
        """Free the sizes acquired longest ago, until the pool has at most 1.25 times the most bytes ever in use.

        The quarter more keeps the buffers of large batches while small ones run.
        """
        for size, unused in self._unused.items():
            while unused and self._used_bytes + self._unused_bytes > self._peak_bytes * 5 // 4:
                unused.pop()
                self._unused_bytes -= size
