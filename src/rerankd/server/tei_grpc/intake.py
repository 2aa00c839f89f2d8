"""The messages of calls as they are received: in time, and no more of them at a time than memory is meant for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from rerankd.server.settings import Settings
from rerankd.server.tei_grpc.calls import Refused

PLACES = 64
"""Calls that receive a message at a time. What all of them may receive is as much as all bodies may have."""
PATIENCE = 0.5
"""Seconds that a call waits for a place before the one that has waited longest for its message is given up."""


def most_bytes(settings: Settings) -> int:
    """The bytes that a message may have."""
    return max(min(settings.max_body, settings.max_bodies // PLACES), 1)


class Intake:
    """Receives messages. The library itself bounds how large one is, and neither how many nor how long they take."""

    def __init__(self, settings: Settings) -> None:
        self._together = max(settings.max_body, settings.max_bodies)
        self._places = asyncio.Semaphore(PLACES)
        self._receiving: OrderedDict[asyncio.Future[bytes], float] = OrderedDict()
        self._held = 0

    async def received(self, messages: AsyncIterator[bytes], seconds: float | None = None) -> bytes | None:
        """The next message of a call; None at the end of its stream.

        seconds: the time in which the message must arrive; None for any time, while no other call needs the place.
        Raises Refused.
        """
        await self._place()
        receiving = asyncio.ensure_future(messages.__anext__())
        self._receiving[receiving] = time.monotonic()
        try:
            await asyncio.wait((receiving,), timeout=seconds)
            if not receiving.done():
                raise Refused(408, f"The message did not arrive within {seconds:g} seconds (--body-timeout).")
            if receiving.cancelled():
                raise Refused(
                    429, "The message did not arrive while other calls needed the place; send it again later."
                )
            return receiving.result()
        except StopAsyncIteration:
            return None
        finally:
            self._receiving.pop(receiving, None)
            receiving.cancel()
            self._places.release()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count a message of `size` bytes, until the context ends. Raises Refused if all messages are too large."""
        if self._held + size > self._together:
            raise Refused(
                429,
                f"The messages of all calls together are larger than the {self._together} bytes that this server "
                "holds; send this one again later, or start it with a larger --max-bodies-mb.",
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def _place(self) -> None:
        taking = asyncio.ensure_future(self._places.acquire())
        try:
            while not (await asyncio.wait((taking,), timeout=PATIENCE))[0]:
                self._give_up_the_oldest()
        except asyncio.CancelledError:
            if not taking.cancel():
                self._places.release()
            raise

    def _give_up_the_oldest(self) -> None:
        oldest, since = next(iter(self._receiving.items()), (None, 0.0))
        if oldest is not None and time.monotonic() - since >= PATIENCE:
            del self._receiving[oldest]
            oldest.cancel()
