"""Operations computed one by one, or recorded in a command list that one call computes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident

import numpy
import torch
from numpy.typing import NDArray

from rerankd.backends.cpu.buffers import Buffer, BufferPool, Pending
from rerankd.backends.cpu.native.library import KernelsError, prepare
from rerankd.backends.cpu.native.units import Unit
from rerankd.backends.cpu.rows import BlockedTensor

_RECORDED = (
    "These rows belong to operations that are recorded and not computed yet. Read or write them after the scope of "
    "`Kernels.recorded`, or inside of it by operations of the kernels."
)
_LOST = (
    "These rows were never computed: the scope of `Kernels.recorded` that was to write them ended with an error. "
    "Compute them again, in rows of their own."
)
_ONE_THREAD = "Another thread is using these kernels. Load kernels for each thread that computes."

_NO_MEMORY, _UNKNOWN_OPERATION, _CUT_SHORT, _OUTSIDE_OF_TABLE = 1, 2, 3, 4
_PROBLEMS = {_UNKNOWN_OPERATION: "one of them is unknown", _CUT_SHORT: "it ends within one of them"}


class CommandList:
    """Recorded operations, and references to the memory that they use.

    Operations are computed in order. So a buffer of the pool that nothing refers to any more can serve the operations
    recorded after its last use: the command list keeps no reference to it, and the pool hands it out again while it is
    still in the caches.

    reads, writes: objects that operations read and write, except rows in buffers of the pool
    """

    def __init__(self, pool: BufferPool) -> None:
        self.operations: list[bytes] = []
        self.reads: list[object] = []
        self.writes: list[object] = []
        self.written = Pending(_RECORDED)
        self._read = Pending(_RECORDED)
        self._pool = pool
        self._thread = get_ident()

    def check_thread(self) -> None:
        """RuntimeError in another thread than the one that began to record."""
        if get_ident() != self._thread:
            raise RuntimeError(_ONE_THREAD)

    def record(self, operation: bytes, reads: Sequence[object], writes: Sequence[object]) -> None:
        """Append an operation. RuntimeError for rows that another command list uses or never computed."""
        self.check_thread()
        for things, pending, kept in ((reads, self._read, self.reads), (writes, self.written, self.writes)):
            for x in things:
                if isinstance(x, BlockedTensor):
                    buffer = x.buffer
                    if buffer.pending is not self.written and buffer.pending is not pending:
                        if buffer.pending is not self._read:
                            x.check()
                        buffer.pending = pending
                    if buffer.pool is self._pool:
                        continue
                kept.append(x)
        self.operations.append(operation)

    def repeat(self, first: int, weights: NDArray[numpy.int64]) -> None:
        """Append copies of the operations from number `first` on; see `Execution.repeated`."""
        self.check_thread()
        words = numpy.frombuffer(b"".join(self.operations[first:]), dtype=numpy.int64)
        order = weights[0].argsort()
        columns = order[weights[0].searchsorted(words, sorter=order).clip(max=len(order) - 1)]
        of_weights = weights[0][columns] == words
        copies = numpy.tile(words, (len(weights) - 1, 1))
        copies[:, of_weights] = weights[1:, columns[of_weights]]
        self.operations.append(copies.tobytes())

    def close(self, lost: str | None) -> None:
        """Drop all references. lost: why the written rows have no values; None where the operations were computed"""
        self._read.why, self.written.why = None, lost
        for kept in (self.operations, self.reads, self.writes):
            kept.clear()


class Execution:
    """Calls into the library, for one thread at a time: RuntimeError where a second thread is seen to call."""

    def __init__(self, library: ctypes.CDLL, unit: Unit) -> None:
        """KernelsError for a library of another version."""
        prepare(library)
        self.library = library
        self.unit = unit
        self._recording: CommandList | None = None
        self._pool = BufferPool()
        self._computing = Lock()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the operations called in this scope; one call computes them at its end. None has a value before.

        While an operation runs, Python's code and data drop out of the caches. Calling the next operation then takes
        several times as long as calling two in a row, and no core computes meanwhile.

        In this scope nothing but these operations may read or write an object that one of them reads or writes, or rows
        allocated in the scope, whose memory a recorded operation may still read. Blocked tensors, and functions that
        compute at once, raise RuntimeError. A dense tensor cannot: the tests watch torch's functions instead.

        After an error in the scope or in computing, rows that an operation was to write raise RuntimeError for good.
        Scopes do not nest.
        """
        recording = self._recording
        if recording is not None:
            recording.check_thread()
            raise RuntimeError("Operations are recorded already: scopes of `Kernels.recorded` do not nest.")
        recording = self._recording = CommandList(self._pool)
        self._pool.pending = recording.written
        lost: str | None = _LOST
        try:
            yield
            self._run(b"".join(recording.operations))
            lost = None
        finally:
            self._recording = self._pool.pending = None
            recording.close(lost)
            self._pool.trim()

    @contextmanager
    def repeated(self, weights: NDArray[numpy.int64]) -> Iterator[None]:
        """Record the operations called in this scope once for each row of `weights`, in the scope of `recorded`.

        weights: int64 [times, n]: the addresses of weights that the operations called get, all different, then the
            address in the place of each the next times. The caller keeps the weights in memory until all is computed.

        No size, stride or other number is as large as an address, so that every address is found by its value.
        """
        recording = self._recording
        assert recording is not None, "operations are repeated where they are recorded"
        first = len(recording.operations)
        yield
        if len(weights) > 1:
            recording.repeat(first, weights)

    def _compute(self, operation: bytes, reads: Sequence[object], writes: Sequence[object]) -> None:
        """Compute an operation that reads and writes these objects, or record it in the scope of `recorded`."""
        recording = self._recording
        if recording is not None:
            recording.record(operation, reads, writes)
            return
        for x in (*reads, *writes):
            if isinstance(x, BlockedTensor):
                x.check()
        self._run(operation)

    def _run(self, operations: bytes) -> None:
        """Compute a command list.

        MemoryError where memory runs out; IndexError for a token outside of a table; KernelsError for a list that
        cannot be read.
        """
        run, threads = self.library.rerankd_run, torch.get_num_threads()
        code = self._call(run, threads, self.unit.number, len(operations), operations)
        if code == _NO_MEMORY:
            raise MemoryError("No memory for attention over a batch.")
        if code == _OUTSIDE_OF_TABLE:
            raise IndexError("A token's number lies outside of the model's tables.")
        if code:
            raise KernelsError(f"The compiled kernels cannot read a list of operations: {_PROBLEMS[code]}.")

    def _call(self, function: Callable[..., int], *arguments: object) -> int:
        if not self._computing.acquire(blocking=False):
            raise RuntimeError(_ONE_THREAD)
        try:
            return function(*arguments)
        finally:
            self._computing.release()

    def _at_once(self, function: Callable[..., int], *arguments: object) -> int:
        """Call a function that computes at once. RuntimeError while operations are recorded."""
        if self._recording is not None:
            raise RuntimeError(
                f"`{function.__name__}` computes at once, and operations before it are recorded and not computed yet. "
                "Call it outside of the scope of `Kernels.recorded`."
            )
        return self._call(function, *arguments)

    def _acquire(self, size: int) -> Buffer:
        recording = self._recording
        if recording is not None:
            recording.check_thread()
        return self._pool.acquire(size)
