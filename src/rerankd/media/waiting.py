"""Waiting for work in threads, which holds memory until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any


async def all_done(work: Callable[[int], Awaitable[None]], items: Sequence[int]) -> None:
    """Do the work for every item at the same time; the first failure cancels what has not begun."""
    tasks = [asyncio.ensure_future(work(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await ended(tasks)


async def ended(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for futures whatever they end with, and whoever asks this task to end sooner: threads hold memory."""
    left = [future for future in futures if not future.done()]
    while left:
        with suppress(asyncio.CancelledError):
            await asyncio.wait(left)
        left = [future for future in left if not future.done()]
