"""Work in threads that stops when nobody waits for it, and that grows no further than its limits."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from rerankd import work
from rerankd.core import EngineClosed, InvalidRequest, RerankRequest, text_content
from rerankd.limits import RequestLimits
from rerankd.models.recipes.encoders import CROSS_ENCODER
from rerankd.prompts import load_prompts
from rerankd.work import Workers


class Task:
    """Work that ends when it is told to, or finds that nobody waits for it any more."""

    def __init__(self) -> None:
        self.began, self.end, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.began.set()
        try:
            while not self.end.wait(0.01):
                work.check()
        finally:
            self.ended.set()
        return "done"


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    one = Workers("test", 1)
    yield one
    one.close()


async def began(task: Task) -> None:
    assert await asyncio.to_thread(task.began.wait, 30)


async def test_what_is_waited_for_is_done(workers: Workers) -> None:
    task = Task()
    task.end.set()
    assert await workers.run(task) == "done"

    def failing() -> None:
        raise InvalidRequest("query", "is wrong")

    with pytest.raises(InvalidRequest):
        await workers.run(failing)


async def test_cancelling_stops_what_runs_and_waits_until_it_has_stopped(workers: Workers) -> None:
    task = Task()
    waiting = asyncio.ensure_future(workers.run(task))
    await began(task)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert task.ended.is_set()


async def test_cancelling_drops_what_has_not_begun(workers: Workers) -> None:
    first, second = Task(), Task()
    running, queued = (asyncio.ensure_future(workers.run(task)) for task in (first, second))
    await began(first)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued  # though the thread is busy
    first.end.set()
    assert await running == "done"
    assert not second.began.is_set()


async def test_a_result_that_comes_too_late_is_dropped(workers: Workers) -> None:
    go, dropped = threading.Event(), []
    waiting = asyncio.ensure_future(workers.run(lambda: go.wait(30) and "late", dropped.append))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.sleep(0.05)
    assert not waiting.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert dropped == ["late"]


async def test_cancelled_twice_it_does_not_wait(workers: Workers) -> None:
    go, dropped = threading.Event(), []
    waiting = asyncio.ensure_future(workers.run(lambda: go.wait(30) and "late", dropped.append))
    for _ in range(2):
        await asyncio.sleep(0.05)
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not dropped
    go.set()
    while not dropped:
        await asyncio.sleep(0.01)


async def test_closing_ends_what_runs_and_what_waits() -> None:
    workers = Workers("test", 1)
    first, second = Task(), Task()
    calls = [asyncio.ensure_future(workers.run(task)) for task in (first, second)]
    await began(first)
    workers.close()
    for call in calls:
        with pytest.raises(EngineClosed):
            await call
    with pytest.raises(EngineClosed):
        await workers.run(time.monotonic)
    assert not second.began.is_set()


async def test_a_failure_keeps_nothing_that_its_frames_hold(workers: Workers) -> None:
    """Without a collection, which comes late: bodies of a server would add up meanwhile."""

    class Held:
        """Such as a body."""

    def fails(held: Held) -> None:
        raise ValueError("it fails")

    async def waits(held: Held) -> None:
        await workers.run(partial(fails, held))

    async def of_two(held: Held) -> None:
        await work.all_of([waits(held), waits(held)])

    gc.disable()
    try:
        for waiting in (waits, of_two):
            held = Held()
            known = weakref.ref(held)
            with suppress(ValueError):
                await waiting(held)
            del held
            await asyncio.sleep(0.05)
            assert known() is None, waiting.__name__
    finally:
        gc.enable()


async def test_a_failure_ends_the_others_first(workers: Workers) -> None:
    task = Task()

    async def fail() -> str:
        await began(task)
        raise InvalidRequest("query", "is wrong")

    with pytest.raises(InvalidRequest):
        await work.all_of([workers.run(task), fail()])
    assert task.ended.is_set()


def test_nothing_is_counted_outside_and_everything_inside() -> None:
    limits = RequestLimits(chunks=3, tokens=10)
    work.count("chunks", 100)
    work.check_tokens(10**9)
    work.check()
    for _ in range(2):
        with work.bounded(limits):
            work.count("chunks", 3)
            work.count("tokens", 10)
            work.check_tokens(10 * work.SPARE)
            with pytest.raises(InvalidRequest, match="--max-request-tokens"):
                work.check_tokens(11 * work.SPARE)
            with pytest.raises(InvalidRequest, match="--max-request-chunks"):
                work.count("chunks", 1)
    with work.bounded(None):
        work.count("chunks", 100)


def test_documents_that_fail_are_noted_where_they_are_left_out() -> None:
    errors = [InvalidRequest(field, "is wrong") for field in ("documents[3]", "documents[12].content[0]", "query")]
    for error in errors:
        with pytest.raises(InvalidRequest):
            work.refuse(error)
    with work.leaving_out() as failed:
        work.refuse(errors[0])
        work.refuse(InvalidRequest("documents[3]", "is wrong again"))
        work.refuse(errors[1])
        with pytest.raises(InvalidRequest):
            work.refuse(errors[2])
    assert failed == {3: errors[0], 12: errors[1]}


def test_prompts_of_encoders_are_counted_while_they_are_built(minilm_path: Path) -> None:
    """A long query is copied for each document: it is told before it was copied for all."""
    prompts = load_prompts(minilm_path, recipe=CROSS_ENCODER, positions=512)
    request = RerankRequest(text_content("word " * 100), (text_content("a"),) * 1000)
    with work.bounded(RequestLimits(tokens=1000)), pytest.raises(InvalidRequest, match="tokens"):
        prompts.build(request)
    assert prompts.build(request).prompt_tokens > 100_000


async def test_small_tasks_pass_large_ones_and_none_starves() -> None:
    """Of what waits, the smallest and the oldest are taken in turn."""
    workers = Workers("test", 1)
    go, done = threading.Event(), []
    first = asyncio.ensure_future(workers.run(lambda: go.wait(30)))
    await asyncio.sleep(0.05)
    sizes = [50, 40, 30, 20, 10, 5]
    rest = [asyncio.ensure_future(workers.run(partial(done.append, size), size=size)) for size in sizes]
    gone = asyncio.ensure_future(workers.run(partial(done.append, 1), size=1))
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.sleep(0.05)
    go.set()
    await asyncio.gather(first, *rest)
    assert sorted(done, reverse=True) == sizes
    smallest, oldest = sorted(sizes), list(sizes)
    for place, size in enumerate(done):
        assert size in (smallest[0], oldest[0]), (place, done)
        smallest.remove(size)
        oldest.remove(size)
    assert done.index(5) < 3
    assert done.index(50) < 3
    workers.close()
