"""The loop: results go to their own requests, failures stay with their own batch, closing settles everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
import torch
from torch import Tensor

from rerankd.core import EngineClosed, EngineDead, EngineError, PackedBatch, PromptGroup, Segment
from rerankd.engine import engine as engines
from rerankd.engine import watchdog
from rerankd.engine.engine import Engine
from rerankd.engine.flight import Flight


class SumModel:
    """The logit of a document is the sum of its token ids. A token 666 fails its batch, 667 gives a NaN.

    fault: raised by every batch, once it is there
    """

    shares_prefix = True

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fault: BaseException | None = None

    def __call__(self, batch: PackedBatch) -> Tensor:
        self.entered.set()
        assert self.gate.wait(30)
        ids = batch.token_ids.tolist()
        self.batches.append(ids)
        if self.fault:
            raise self.fault
        if 666 in ids:
            raise RuntimeError("the beast")
        sums = torch.tensor([float(sum(ids[span.start : span.stop])) for span in batch.documents()])
        return sums.masked_fill(sums == 667, float("nan"))


@pytest.fixture
def model() -> SumModel:
    return SumModel()


@pytest.fixture(params=[1, 2], ids=["one batch at a time", "two in flight"])
def start(model: SumModel, request: pytest.FixtureRequest) -> Iterator[Callable[[int], Engine]]:
    engines: list[Engine] = []

    def make(budget: int) -> Engine:
        engines.append(Engine(model, torch.device("cpu"), budget, in_flight=request.param))
        return engines[-1]

    yield make
    model.gate.set()
    for engine in engines:
        engine.close()


def group(*documents: int, prefix: int = 1) -> PromptGroup:
    return PromptGroup(Segment([prefix]), tuple(Segment([d]) for d in documents), (False,) * len(documents))


def test_a_request_over_the_budget_is_split_and_answered_in_order(
    model: SumModel, start: Callable[[int], Engine]
) -> None:
    engine = start(5)
    assert engine.submit(group(*range(10, 30))).result(30) == [float(d) for d in range(10, 30)]
    assert len(model.batches) == 5
    assert all(batch[0] == 1 and len(batch) == 5 for batch in model.batches)


def test_requests_share_a_batch_and_keep_their_own_results(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(100)
    model.gate.clear()
    first = engine.submit(group(5))
    assert model.entered.wait(30)
    rest = [engine.submit(group(10 * i, 10 * i + 1)) for i in range(1, 6)]
    model.gate.set()
    assert first.result(30) == [5.0]
    assert [future.result(30) for future in rest] == [[10.0 * i, 10.0 * i + 1] for i in range(1, 6)]
    assert len(model.batches) == 2


def test_a_request_that_fails_takes_no_other_with_it(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(100)
    model.gate.clear()
    first = engine.submit(group(5))
    assert model.entered.wait(30)
    futures = [engine.submit(group(d)) for d in (7, 666, 8, 667, 9)]
    model.gate.set()
    assert first.result(30) == [5.0]
    assert [futures[i].result(30) for i in (0, 2, 4)] == [[7.0], [8.0], [9.0]]
    for i, text in ((1, "the beast"), (3, "not finite")):
        with pytest.raises(EngineError, match=text):
            futures[i].result(30)
    assert max(map(len, model.batches)) == 10


def test_a_failing_batch_fails_its_requests_only(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    futures = [engine.submit(group(d)) for d in (7, 666, 8)]
    assert futures[0].result(30) == [7.0]
    with pytest.raises(EngineError, match="the beast"):
        futures[1].result(30)
    assert futures[2].result(30) == [8.0]


def test_a_request_that_failed_half_way_is_not_scored_further(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    with pytest.raises(EngineError):
        engine.submit(group(1, 666, 2, 3, 4)).result(30)
    engine.submit(group(9)).result(30)
    assert [1, 4] not in model.batches


def test_a_logit_that_is_no_number_is_an_error_not_a_score(start: Callable[[int], Engine]) -> None:
    with pytest.raises(EngineError, match="not finite"):
        start(10).submit(group(1, 667)).result(30)


def test_cancelling_drops_the_documents_that_wait(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    model.gate.clear()
    future = engine.submit(group(*range(10, 40)))
    assert model.entered.wait(30)
    assert future.cancel()
    model.gate.set()
    assert engine.submit(group(5)).result(30) == [5.0]
    assert model.batches == [[1, 10], [1, 5]]


def test_progress_counts_every_document_and_its_failure_is_its_own(start: Callable[[int], Engine]) -> None:
    engine = start(4)
    seen: list[int] = []
    engine.submit(group(*range(7)), seen.append).result(30)
    assert seen == [3, 3, 1]

    def broken(documents: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.submit(group(1), broken).result(30)
    assert engine.submit(group(2)).result(30) == [2.0]


def test_an_empty_request_is_answered_at_once(start: Callable[[int], Engine]) -> None:
    assert start(4).submit(group()).result(0) == []


def test_closing_settles_what_waits_and_refuses_what_comes(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    model.gate.clear()
    running, waiting = engine.submit(group(1)), engine.submit(group(2))
    assert model.entered.wait(30)
    threading.Timer(0.05, model.gate.set).start()
    engine.close()
    assert running.result(30) == [1.0]
    with pytest.raises(EngineClosed):
        waiting.result(30)
    with pytest.raises(EngineClosed):
        engine.submit(group(3))


def test_a_cancelled_future_stays_cancelled(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    model.gate.clear()
    future = engine.submit(group(1))
    assert model.entered.wait(30)
    future.cancel()
    model.gate.set()
    with pytest.raises(CancelledError):
        future.result(30)
    assert engine.submit(group(4)).result(30) == [4.0]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PROBE_SECONDS", 0.01)


def dead(engine: Engine) -> EngineDead:
    """What a request gets from an engine that has failed."""
    with pytest.raises(EngineDead) as raised:
        engine.submit(group(1)).result(30)
    assert engine.failure is not None
    return raised.value


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", [RuntimeError("device-side assert"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_an_engine_whose_batches_all_fail_is_given_up(
    model: SumModel, start: Callable[[int], Engine], fault: Exception
) -> None:
    engine = start(4)
    assert engine.submit(group(1)).result(30) == [1.0]
    assert engine.failure is None
    model.gate.clear()
    model.entered.clear()
    futures = [engine.submit(group(d)) for d in (2, 3, 4, 5)]
    assert model.entered.wait(30)
    model.fault = fault
    model.gate.set()
    assert {type(future.exception(30)) for future in futures} == {EngineDead}
    assert dead(engine).__cause__ is fault
    engine.close()


@pytest.mark.usefixtures("soon")
def test_requests_that_fail_do_not_end_an_engine_that_works(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(4)
    assert engine.submit(group(1)).result(30) == [1.0]
    for token in (666, 667) * 5:
        with pytest.raises(EngineError):
            engine.submit(group(token)).result(30)
    assert engine.failure is None
    assert engine.submit(group(2)).result(30) == [2.0]


@pytest.mark.usefixtures("soon")
def test_a_fault_that_passes_does_not_end_the_engine(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(4)
    assert engine.submit(group(1)).result(30) == [1.0]
    left = [2]

    def failing(batch: PackedBatch) -> Tensor:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("passing")
        return model(batch)

    failing.shares_prefix = True  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "model", failing)
        with pytest.raises(EngineError, match="passing"):
            engine.submit(group(2)).result(30)
        assert engine.submit(group(3)).result(30) == [3.0]
    assert engine.failure is None


def test_an_engine_whose_thread_ends_answers_nobody_for_ever(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    model.gate.clear()
    futures = [engine.submit(group(d)) for d in (1, 2, 3)]
    assert model.entered.wait(30)
    model.fault = SystemExit()
    model.gate.set()
    assert {type(future.exception(30)) for future in futures} == {EngineDead}
    assert isinstance(dead(engine).__cause__, SystemExit)
    engine.close()


def test_a_batch_that_does_not_end_is_given_up(model: SumModel) -> None:
    engine = Engine(model, torch.device("cpu"), 2, timeout=0.2)
    try:
        assert engine.submit(group(1)).result(30) == [1.0]
        model.gate.clear()
        futures = [engine.submit(group(d)) for d in (1, 2, 3)]
        assert {type(future.exception(30)) for future in futures} == {EngineDead}
        dead(engine)
        engine.close()  # does not wait for the batch
        assert engine._worker.is_alive()
    finally:
        model.gate.set()


def test_a_slow_machine_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for the two tokens of the first batch lets ten tokens have a hundred seconds."""
    now, looks, hung = [0.0], [0], threading.Event()

    def clock() -> float:
        looks[0] += 1
        return now[0]

    def looked() -> None:
        seen = looks[0]
        while looks[0] < seen + 3:
            time.sleep(0.01)

    monkeypatch.setattr(watchdog, "monotonic", clock)
    monkeypatch.setattr(watchdog, "MOST_SECONDS_BETWEEN_LOOKS", 0.02)
    dog = watchdog.Watchdog(5, lambda seconds: hung.set())
    with dog.watching(2):
        now[0] += 1
    with dog.watching(10):
        now[0] += 99
        looked()
        assert not hung.is_set()
        now[0] += 2
        assert hung.wait(30)


def test_memory_is_given_back_between_requests_that_never_end(
    model: SumModel, start: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Semaphore(0)
    monkeypatch.setattr(engines.Trimmer, "look", lambda trimmer: looked.release())
    monkeypatch.setattr(engines, "IDLE_SECONDS", 3600)
    monkeypatch.setattr(engines, "SECONDS_BETWEEN_TRIMS", 0)
    engine = start(10)
    for _ in range(3):
        assert engine.submit(group(1)).result(30) == [1]
        assert looked.acquire(timeout=30)


def test_memory_is_given_back_while_requests_wait(
    model: SumModel, start: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    monkeypatch.setattr(engines.Trimmer, "look", lambda trimmer: waiting.append(engine.load().waiting_requests))
    monkeypatch.setattr(engines, "SECONDS_BETWEEN_TRIMS", 0)
    engine = start(1)
    with engine.held():
        futures = [engine.submit(group(1)) for _ in range(3)]
    assert [future.result(30) for future in futures] == [[1]] * 3
    assert max(waiting) > 0


def test_a_thread_that_is_gone_is_noticed(model: SumModel, start: Callable[[int], Engine]) -> None:
    engine = start(2)
    with engine._wake:
        engine._closed = True
        engine._wake.notify()
    engine._worker.join(30)
    engine._closed = False
    waiting = engine.submit(group(1))
    assert isinstance(engine.failure, EngineDead)
    assert isinstance(waiting.exception(30), EngineDead)


def test_a_batch_is_launched_while_another_is_computed(model: SumModel, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    launched, result = SumModel.__call__, Flight.result

    def launching(self: SumModel, batch: PackedBatch) -> Tensor:
        logits = launched(self, batch)
        events.append(f"launch {batch.token_ids.tolist()[1]}")
        return logits

    def landing(self: Flight) -> list[float] | None:
        events.append(f"land {self.batch[0].group.suffixes[0].token_ids[0]}")
        return result(self)

    monkeypatch.setattr(SumModel, "__call__", launching)
    monkeypatch.setattr(Flight, "result", landing)
    engine = Engine(model, torch.device("cpu"), 2, in_flight=2)
    with engine.held():
        futures = [engine.submit(group(d)) for d in (5, 6, 7)]
    assert [future.result(30) for future in futures] == [[5.0], [6.0], [7.0]]
    engine.close()
    assert events == ["launch 5", "launch 6", "land 5", "launch 7", "land 6", "land 7"]
