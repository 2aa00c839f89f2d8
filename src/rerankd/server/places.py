"""Limits on the calls in progress, and on the calls and tokens that wait for the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rerankd.core import EngineLoad
from rerankd.server.problems import Problem

OVERLOADED = "The server is busy with as many calls as it takes at a time; send this one again later."
LONGEST_RETRY = 600
"""The most seconds in `Retry-After`."""


class Places:
    """The calls that are being answered, from when their bodies are there: `places()`. There may be limits."""

    def __init__(
        self,
        load: Callable[[], EngineLoad],
        calls: int | None = None,
        queued_calls: int | None = None,
        queued_tokens: int | None = None,
    ) -> None:
        """calls: the most calls that are answered at a time; None for no limit, here as below
        queued_calls: the most calls among them that are not in the running batch
        queued_tokens: the most tokens to compute for waiting documents
        """
        self._load = load
        self._calls = calls
        self._queued_calls = queued_calls
        self._queued_tokens = queued_tokens
        self._count = 0

    def __call__(self) -> int:
        return self._count

    def check(self) -> None:
        """Raise a 429 `Problem` where no place is free."""
        if self._calls is not None and self._count >= self._calls:
            raise self.full(OVERLOADED)
        if self._queued_calls is None and self._queued_tokens is None:
            return
        load = self._load()
        if self._queued_calls is not None and self._count - load.running >= self._queued_calls:
            raise self.full(
                "The queue of the server has no place for another call; send this one again later, or start the server "
                "with a larger --max-queued-requests."
            )
        if self._queued_tokens is not None and load.waiting_tokens >= self._queued_tokens:
            raise self.full(
                "The queue of the server has no place for more tokens; send this one again later, or start the server "
                "with a larger --max-queued-tokens."
            )

    def full(self, message: str) -> Problem:
        """A 429 with the time until the waiting tokens will have been scored, at the speed of the last batches."""
        load = self._load()
        seconds = math.ceil(load.waiting_tokens / load.rate) if load.rate else 1
        return Problem(429, message, retry_after=min(max(seconds, 1), LONGEST_RETRY))

    @contextmanager
    def take(self) -> Iterator[None]:
        """A place, until the context ends. Raises as `check`."""
        self.check()
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
