"""Waiting for work in threads until it has really ended, because running work holds memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any


async def all_done(work: Callable[[int], Awaitable[None]], items: Sequence[int]) -> None:
    """Do the work for all items concurrently. The first failure cancels the rest, and is raised when all have ended."""
    tasks = [asyncio.ensure_future(work(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await ended(tasks)


async def ended(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until futures are done, whatever their outcome. A cancellation of this task does not end the waiting."""
    pending = [future for future in futures if not future.done()]
    while pending:
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pending)
        pending = [future for future in pending if not future.done()]
