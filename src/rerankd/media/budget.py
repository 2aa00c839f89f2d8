"""A memory budget that all requests share. Memory for media is reserved here before it is allocated."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

from rerankd.media.limits import BadMedia, megabytes
from rerankd.memory import trim_memory

LARGE = 64 << 20
"""After a release of at least this many bytes, freed memory is returned to the kernel."""


class Lease:
    """Reserved bytes of a budget. They are released explicitly, or when the lease is garbage collected."""

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget = budget
        self._amount = amount
        self._lock = threading.Lock()

    def shrink(self, amount: int) -> None:
        """Release all but `amount` bytes."""
        with self._lock:
            surplus = max(0, self._amount - amount)
            self._amount -= surplus
        if surplus:
            self._budget._take_back(surplus)

    def release(self) -> None:
        """Release all bytes; may be called more than once."""
        self.shrink(0)

    def __del__(self) -> None:
        self.release()


class Budget:
    """A number of bytes for one use. Leases are granted in the order of requests, so that a large one never starves.

    total: number of bytes
    use: what the bytes are for, such as `decoding`; a noun for errors
    """

    def __init__(self, total: int, use: str) -> None:
        self.total = total
        self._use = use
        self._free = total
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, Future[Lease]]] = deque()

    @property
    def held(self) -> int:
        """Number of bytes that are reserved now."""
        return self.total - self._free

    def ask(self, amount: int) -> Future[Lease]:
        """A lease of `amount` bytes, granted once they are free. Raises BadMedia for more than the whole budget."""
        if amount > self.total:
            raise BadMedia(
                f"this image or video takes about {megabytes(amount)} of memory, over the limit of "
                f"{megabytes(self.total)} for {self._use} of all requests together; send a smaller file or raise the "
                "limit on memory for media"
            )
        future: Future[Lease] = Future()
        with self._lock:
            self._queue.append((amount, future))
        # If the caller at the head of the queue gives up, the next caller may be served.
        future.add_done_callback(lambda future: self._serve() if future.cancelled() else None)
        self._serve()
        return future

    async def hold(self, amount: int) -> Lease:
        """Like `ask`, for a coroutine, which waits for the lease."""
        future = self.ask(amount)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(give_back)
            raise

    def _take_back(self, amount: int) -> None:
        if amount >= LARGE:
            # Otherwise freed memory would stay in the heap of this thread, where other threads cannot use it.
            trim_memory()
        with self._lock:
            self._free += amount
        self._serve()

    def _serve(self) -> None:
        granted = []
        with self._lock:
            while self._queue and (self._queue[0][1].cancelled() or self._queue[0][0] <= self._free):
                amount, future = self._queue.popleft()
                if future.set_running_or_notify_cancel():
                    self._free -= amount
                    granted.append((future, Lease(self, amount)))
        for future, lease in granted:
            future.set_result(lease)


def give_back(future: Future[Lease]) -> None:
    """Release the lease of a caller that stopped waiting before the lease was granted."""
    if not future.cancelled():
        future.result().release()
