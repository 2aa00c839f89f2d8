"""A memory budget that all requests share: files, decoding and shown pixels are counted before they are allocated."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

from rerankd.media.limits import BadMedia, megabytes
from rerankd.memory import trim_memory

LARGE = 64 << 20
"""Releasing at least this many bytes returns them to the kernel."""


class Lease:
    """Bytes of a budget, until they are released, at the latest when nothing refers to the lease any more."""

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
    """`total` bytes for one use. Requests are served in order, so that small leases never starve a large one.

    use: what the bytes are for, as errors name it
    """

    def __init__(self, total: int, use: str) -> None:
        self.total = total
        self._use = use
        self._free = total
        self._lock = threading.Lock()
        self._asked: deque[tuple[int, Future[Lease]]] = deque()

    @property
    def held(self) -> int:
        """Bytes that are lent now."""
        return self.total - self._free

    def ask(self, amount: int) -> Future[Lease]:
        """A lease of `amount` bytes, when there are as many. Raises BadMedia where there never are."""
        if amount > self.total:
            raise BadMedia(
                f"it takes about {megabytes(amount)} of memory, over the limit of {megabytes(self.total)} for "
                f"{self._use} of all requests together; send a smaller file or raise the limit on memory for media"
            )
        asked: Future[Lease] = Future()
        with self._lock:
            self._asked.append((amount, asked))
        # A caller that gives up may be the first in the queue.
        asked.add_done_callback(lambda done: self._serve() if done.cancelled() else None)
        self._serve()
        return asked

    async def hold(self, amount: int) -> Lease:
        """As `ask`, waiting in an event loop."""
        asked = self.ask(amount)
        try:
            return await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(give_back)
            raise

    def _take_back(self, amount: int) -> None:
        if amount >= LARGE:
            # Else the memory would stay in the heap of this thread, where no other thread can use it.
            trim_memory()
        with self._lock:
            self._free += amount
        self._serve()

    def _serve(self) -> None:
        served = []
        with self._lock:
            while self._asked and (self._asked[0][1].cancelled() or self._asked[0][0] <= self._free):
                amount, asked = self._asked.popleft()
                if asked.set_running_or_notify_cancel():
                    self._free -= amount
                    served.append((asked, Lease(self, amount)))
        for asked, lease in served:
            asked.set_result(lease)


def give_back(asked: Future[Lease]) -> None:
    """Release a lease of a caller that had given up waiting."""
    if not asked.cancelled():
        asked.result().release()
