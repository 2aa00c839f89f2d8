"""Decoding in a thread: bounded in time and memory, and stopped between slices when nobody waits for the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager

from rerankd.media.budget import Budget, give_back
from rerankd.media.limits import BadMedia

GoOn = Callable[[], None]
"""`Decoding.go_on`, for code that takes no memory."""

_LOOKS = 0.05
"""Seconds after which a thread that waits for memory checks whether anybody still waits for its work."""


class Decoding:
    """The reading of one file or picture, for the thread that does it.

    Nothing can stop a thread from outside: it asks between slices of its work (`go_on`), and before it takes
    memory (`holding`).
    """

    def __init__(self, memory: Budget, seconds: float, closing: threading.Event) -> None:
        self._memory = memory
        self._seconds = seconds
        self._closing = closing
        self._cancelled = threading.Event()
        self._until: float | None = None

    def cancel(self) -> None:
        """Let the thread end at the next slice; callable from any thread."""
        self._cancelled.set()

    def go_on(self) -> None:
        """Raises BadMedia where nobody waits for the work any more, or where it has taken too long."""
        now = time.monotonic()
        if self._cancelled.is_set() or self._closing.is_set():
            raise BadMedia("reading it was cancelled")
        if self._until is None:
            self._until = now + self._seconds
        if now > self._until:
            raise BadMedia(
                f"decoding it takes more than {self._seconds:g} seconds, the limit; send a shorter or smaller file, or "
                "raise the limit"
            )

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        """Hold `amount` bytes of memory during the context, once they are free. Waiting does not count as work.

        Raises BadMedia as `go_on` does, and for more than there ever are.
        """
        self.go_on()
        began = time.monotonic()
        asked = self._memory.ask(amount)
        try:
            while True:
                try:
                    lease = asked.result(_LOOKS)
                    break
                except NotYet:
                    if self._cancelled.is_set() or self._closing.is_set():
                        self.go_on()
        except BaseException:
            asked.cancel()
            asked.add_done_callback(give_back)
            raise
        assert self._until is not None
        self._until += time.monotonic() - began
        try:
            yield
        finally:
            lease.release()
