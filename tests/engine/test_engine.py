"""The loop: results go to their own requests, failures stay with their own batch, closing settles everything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
import torch
from torch import Tensor

from rerankd.core import PackedBatch, PromptGroup, Segment
from rerankd.engine.engine import Engine, EngineClosed, EngineError


class SumModel:
    """The logit of a document is the sum of its token ids. A token 666 fails its batch, 667 gives a NaN."""

    shares_prefix = True

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, batch: PackedBatch) -> Tensor:
        self.entered.set()
        assert self.gate.wait(30)
        ids = batch.token_ids.tolist()
        self.batches.append(ids)
        if 666 in ids:
            raise RuntimeError("the beast")
        sums = torch.tensor([float(sum(ids[span.start : span.stop])) for span in batch.documents()])
        return sums.masked_fill(sums == 667, float("nan"))


@pytest.fixture
def model() -> SumModel:
    return SumModel()


@pytest.fixture
def start(model: SumModel) -> Iterator[Callable[[int], Engine]]:
    engines: list[Engine] = []

    def make(budget: int) -> Engine:
        engines.append(Engine(model, torch.device("cpu"), budget))
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
