"""The work on a request in a thread: it stops when nobody waits for it, and grows to its limits and no further."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count as count_from
from typing import Any, TypeVar

from rerankd.core import EngineClosed, InvalidRequest
from rerankd.limits import LimitName, RequestLimits

T = TypeVar("T")
SPARE = 4
"""Before texts are cut to fit, they may have this many times as many tokens as a request may have."""


class Growth:
    """The numbers of a request that are limited, counted while its prompts are built."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self._counts: dict[LimitName, int] = {}

    def add(self, name: LimitName, count: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + count
        self.limits.check(name, self._counts[name], "documents")


# Both belong to the thread that works on a request, so that the code that reads texts need not pass them on.
_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)
_growth: ContextVar[Growth | None] = ContextVar("growth", default=None)
_failed: ContextVar[dict[int, InvalidRequest] | None] = ContextVar("failed", default=None)


def check() -> None:
    """Raise EngineClosed if nobody waits for the work of this thread any more. Long work calls it between steps."""
    stopped = _stopped.get()
    if stopped is not None and stopped.is_set():
        raise EngineClosed("The engine was closed before this request was answered.")


def count(name: LimitName, number: int) -> None:
    """Add to the number `name` of this thread's request. Raises InvalidRequest above its limit."""
    if (growth := _growth.get()) is not None:
        growth.add(name, number)


def check_tokens(number: int) -> None:
    """Raise InvalidRequest for texts that have far more tokens, cut or not, than this thread's request may have."""
    if (growth := _growth.get()) is not None:
        growth.limits.check("tokens", number // SPARE, "documents")


def refuse(error: InvalidRequest) -> None:
    """Raise an error; within `leaving_out`, record the first error of a document, and build the other documents."""
    failed = _failed.get()
    document = re.match(r"documents\[(\d+)\]", error.field)
    if failed is None or document is None:
        raise error
    failed.setdefault(int(document[1]), error)


@contextmanager
def leaving_out() -> Iterator[dict[int, InvalidRequest]]:
    """A context in which `refuse` records errors of documents by index; prompts of these documents have no meaning."""
    failed: dict[int, InvalidRequest] = {}
    token = _failed.set(failed)
    try:
        yield failed
    finally:
        _failed.reset(token)


@contextmanager
def bounded(limits: RequestLimits | None) -> Iterator[None]:
    """A context whose work counts for one request; None for no limits."""
    token = _growth.set(None if limits is None else Growth(limits))
    try:
        yield
    finally:
        _growth.reset(token)


@dataclass(frozen=True, eq=False)
class _Task:
    run: Callable[[], object]
    future: Future[Any]


class Workers:
    """Threads for the long work of requests, beside any event loop.

    In turn a thread takes the smallest task and the one that waits longest: small tasks pass large ones, and none
    starves.
    """

    def __init__(self, name: str, threads: int | None = None) -> None:
        """threads: the number of threads; None for a few more than there are processors"""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._numbers = count_from()
        self._waiting: OrderedDict[int, _Task] = OrderedDict()  # by number, in order of arrival
        self._by_size: list[tuple[int, int]] = []  # sizes and numbers; finished tasks are skipped
        self._running: set[threading.Event] = set()
        self._closed = False

    async def run(self, task: Callable[[], T], drop: Callable[[T], object] | None = None, size: int = 0) -> T:
        """Run `task` in one of the threads; return or raise as it does.

        drop: given the result where nobody takes it
        size: the amount of work, in the unit of the other tasks

        Cancelling the awaiting coroutine drops a task that no thread has begun, and ends another at its next `check`:
        until then the cancelled coroutine waits, so that no part of the task runs after the coroutine has ended.
        Cancelled again, it does not wait. Raises EngineClosed once the threads are closed.
        """
        stopped = threading.Event()
        context = copy_context()
        context.run(_stopped.set, stopped)
        with self._lock:
            if self._closed:
                raise EngineClosed("The engine is closed.")
            future: Future[T] = Future()
            number = next(self._numbers)
            self._waiting[number] = _Task(partial(context.run, task), future)
            heappush(self._by_size, (size, number))
            self._threads.submit(self._next, number % 2 == 0)
            self._running.add(stopped)
        future.add_done_callback(lambda _: self._running.discard(stopped))
        completion = asyncio.wrap_future(future)
        try:
            await asyncio.wait([completion])
        except asyncio.CancelledError:
            stopped.set()
            if not future.cancel():
                completion.add_done_callback(lambda completion: _dropped(completion, drop))
                await asyncio.wait([completion])
            raise
        if completion.cancelled():
            raise EngineClosed("The engine was closed before this request was answered.")
        try:
            return completion.result()
        finally:
            # An exception keeps its frames, and they would keep it: a cycle, with all that they hold.
            del completion, future

    def close(self) -> None:
        """Drop the tasks that no thread has begun, and ask the others to stop; does not wait for them."""
        with self._lock:
            self._closed = True
            running = tuple(self._running)
            waiting = tuple(self._waiting.values())
            self._waiting.clear()
        for stopped in running:
            stopped.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for task in waiting:
            task.future.cancel()

    def _next(self, smallest: bool) -> None:
        """Do a task that waits. There is one for each call."""
        with self._lock:
            if not self._waiting:
                return
            if smallest:
                number = heappop(self._by_size)[1]
                while number not in self._waiting:
                    number = heappop(self._by_size)[1]
            else:
                number = next(iter(self._waiting))
            task = self._waiting.pop(number)
        if not task.future.set_running_or_notify_cancel():
            return
        try:
            result = task.run()
        except BaseException as error:
            future = task.future
            del task
            future.set_exception(error)
            del future
        else:
            task.future.set_result(result)


async def all_of(awaited: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order. A failure, as a cancelled wait, cancels the others, and is raised once they have ended."""
    listed = list(awaited)
    if len(listed) == 1:  # there are no others, and a task takes its time
        return [await listed[0]]
    futures = [asyncio.ensure_future(awaitable) for awaitable in listed]
    future: asyncio.Future[T] | None = None
    try:
        if futures:
            await asyncio.wait(futures, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    try:
        for future in futures:
            if not future.cancelled():
                future.result()
        return [future.result() for future in futures]
    finally:
        futures, future = [], None  # as in `Workers.run`


def _dropped(future: asyncio.Future[T], drop: Callable[[T], object] | None) -> None:
    if not future.cancelled() and future.exception() is None and drop is not None:
        drop(future.result())
