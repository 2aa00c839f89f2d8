from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.media.budget import Budget, Lease
from rerankd.media.decoding import Decoding
from rerankd.media.limits import BadMedia

TOTAL = 100


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(0, TOTAL)),
            st.tuples(st.sampled_from(["cancel", "release"]), st.integers(0, 30)),
            st.tuples(st.just("shrink"), st.integers(0, 30)),
        ),
        max_size=60,
    )
)
def test_served_in_order_never_beyond_the_total_and_nothing_is_lost(steps: list[tuple[str, int]]) -> None:
    budget = Budget(TOTAL, "files")
    asked: list[tuple[int, Future[Lease]]] = []
    sizes: dict[int, int] = {}
    for what, number in steps:
        if what == "ask":
            asked.append((number, budget.ask(number)))
        elif number < len(asked):
            future = asked[number][1]
            if what == "cancel":
                future.cancel()
            elif future.done() and not future.cancelled():
                kept = sizes.get(number, asked[number][0]) // 2 if what == "shrink" else 0
                future.result().shrink(kept)
                sizes[number] = kept
        waiting = [amount for amount, future in asked if not future.done()]
        held = sum(
            sizes.get(index, amount)
            for index, (amount, future) in enumerate(asked)
            if future.done() and not future.cancelled()
        )
        assert budget.held == held <= TOTAL
        assert not waiting or waiting[0] > TOTAL - held, "whoever is first waits only for what is not there"
        order = [future.done() for _, future in asked if not future.cancelled()]
        assert order == sorted(order, reverse=True), "nobody overtakes"


def test_more_than_there_is_for_all_is_refused_at_once() -> None:
    with pytest.raises(
        BadMedia,
        match="takes about 101 bytes of memory, over the limit of 100 bytes for files of all requests",
    ):
        Budget(100, "files").ask(101)


def test_a_lease_that_is_forgotten_is_given_back() -> None:
    budget = Budget(100, "files")
    lease = budget.ask(60).result()
    assert budget.held == 60
    del lease
    assert budget.held == 0


def test_waiting_in_an_event_loop() -> None:
    async def run() -> None:
        budget = Budget(100, "files")
        first = await budget.hold(70)
        large, small = asyncio.create_task(budget.hold(80)), asyncio.create_task(budget.hold(10))
        await asyncio.sleep(0.01)
        assert not small.done(), "it came after the large one"
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        lease = await small
        first.release()
        assert budget.held == 10
        # Lent and cancelled in the same step of the loop: nobody holds it.
        late = asyncio.create_task(budget.hold(95))
        await asyncio.sleep(0)
        lease.release()
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert budget.held == 0

    asyncio.run(run())


def started(work: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BadMedia as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_thread_that_waits_for_memory_can_be_cancelled(how: str) -> None:
    budget, closing = Budget(100, "decoding"), threading.Event()
    first = budget.ask(60).result()
    decoding = Decoding(budget, 60.0, closing)

    def work() -> None:
        with decoding.holding(50):
            raise AssertionError("there is no memory")

    thread, found = started(work)
    decoding.cancel() if how == "cancel" else closing.set()
    thread.join(30)
    assert "cancelled" in str(found[0])
    first.release()
    assert budget.held == 0


def test_waiting_for_memory_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(100, "decoding")
    first = budget.ask(100).result()
    decoding = Decoding(budget, 10.0, threading.Event())
    decoding.go_on()

    def work() -> float:
        with decoding.holding(50):
            decoding.go_on()
            now[0] += 9.0
            decoding.go_on()
            now[0] += 2.0
            with pytest.raises(BadMedia, match="takes more than 10 seconds"):
                decoding.go_on()
        return now[0]

    thread, found = started(work)
    while not budget._queue:
        pass
    now[0] += 1000.0
    first.release()
    thread.join(30)
    assert found == [1011.0]
    assert budget.held == 0
