"""Distinguishes a batch that hangs from a batch that takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

MUCH_SLOWER = 20
"""A batch over its seconds is given up when it is this many times slower per token than any batch before it."""
LOOKS = 4
"""The number of checks within the seconds that a batch may take."""
MOST_SECONDS_BETWEEN_LOOKS = 1.0


class Watchdog:
    """Calls `hung`, once, from a thread of its own, when a batch takes so long that it will not end."""

    def __init__(self, seconds: float, hung: Callable[[float], object]) -> None:
        """seconds: the time that a batch may take; more on a slow machine
        hung: is called with the seconds of the batch
        """
        self._seconds = seconds
        self._hung = hung
        self._slowest = 0.0
        self._running: tuple[float, float] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="rerankd-watchdog", daemon=True).start()

    @contextmanager
    def watching(self, tokens: int) -> Iterator[None]:
        """A context in which a batch of `tokens` tokens is computed."""
        began = monotonic()
        self._running = began, began + max(self._seconds, MUCH_SLOWER * tokens * self._slowest)
        try:
            yield
            self._slowest = max(self._slowest, (monotonic() - began) / max(tokens, 1))
        finally:
            self._running = None

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.wait(min(self._seconds / LOOKS, MOST_SECONDS_BETWEEN_LOOKS)):
            running, now = self._running, monotonic()
            if running and now > running[1]:
                self._hung(now - running[0])
                return
