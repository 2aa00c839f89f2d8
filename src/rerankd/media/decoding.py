"""Limits on decoding in a thread: on time, on memory, and a stop when nobody waits for the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as NotReady
from contextlib import contextmanager

from rerankd.media.budget import Budget, give_back
from rerankd.media.limits import BadMedia

GoOn = Callable[[], None]
"""`Decoding.go_on`, for code that needs no memory. It is called repeatedly, and may raise BadMedia."""

_POLL_SECONDS = 0.05
"""Interval at which a thread that waits for memory checks whether the work was cancelled."""


class Decoding:
    """The decoding of one file or image, as seen by the thread that does the work.

    A thread cannot be stopped from outside. So the thread calls `go_on` between small steps of its work, and `holding`
    before it allocates memory.

    memory: the budget for decoding
    seconds: the limit on the time of decoding
    closing: set when the loader closes
    """

    def __init__(self, memory: Budget, seconds: float, closing: threading.Event) -> None:
        self._memory = memory
        self._seconds = seconds
        self._closing = closing
        self._cancelled = threading.Event()
        self._deadline: float | None = None

    def cancel(self) -> None:
        """Make the next `go_on` raise. May be called from any thread."""
        self._cancelled.set()

    def go_on(self) -> None:
        """Raise BadMedia if the work was cancelled or has taken too long."""
        now = time.monotonic()
        if self._cancelled.is_set() or self._closing.is_set():
            raise BadMedia("reading was cancelled")
        if self._deadline is None:
            self._deadline = now + self._seconds
        if now > self._deadline:
            raise BadMedia(
                f"decoding takes more than {self._seconds:g} seconds, the limit; send a shorter or smaller file, or "
                "raise the limit"
            )

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Wait for `amount` bytes of memory, and hold them during the context. Waiting does not count as decoding time.

        Raises BadMedia as `go_on` does, and for more bytes than the whole budget.
        """
        self.go_on()
        began = time.monotonic()
        future = self._memory.ask(amount)
        try:
            while True:
                try:
                    lease = future.result(_POLL_SECONDS)
                    break
                except NotReady:
                    if self._cancelled.is_set() or self._closing.is_set():
                        self.go_on()
        except BaseException:
            future.cancel()
            future.add_done_callback(give_back)
            raise
        assert self._deadline is not None
        self._deadline += time.monotonic() - began
        try:
            yield
        finally:
            lease.release()
