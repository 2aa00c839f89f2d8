"""Batches that fail: whose the failure is gets an error, all others their own scores, in order."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd.core import EngineError, OutOfMemory, PromptGroup, Segment
from rerankd.engine.batcher import Job, Slice
from rerankd.engine.retries import Budget, scored

GUILTY, NOT_A_NUMBER = 666, 667
MEMORY: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    lambda: MemoryError(),
]


def piece(*documents: int, length: int = 1, prefix: int = 1) -> Slice:
    suffixes = tuple(Segment([document] * length) for document in documents)
    group = PromptGroup(Segment([9] * prefix), suffixes, (False,) * len(suffixes))
    return Slice(Job(group, Future()), group, prefix + length * len(documents))


class Machine:
    """Scores a document by its token; fails on GUILTY, and on more than so many tokens."""

    def __init__(self, memory: int = 10**9, failure: Callable[[], Exception] = MEMORY[0]) -> None:
        self.memory = memory
        self.failure = failure
        self.batches: list[int] = []
        self.freed = 0

    def __call__(self, batch: Sequence[Slice]) -> list[list[float]]:
        self.batches.append(sum(one.cost for one in batch))
        if self.batches[-1] > self.memory:
            raise self.failure()
        documents = [[suffix.token_ids[0] for suffix in one.group.suffixes] for one in batch]
        if any(GUILTY in own for own in documents):
            raise RuntimeError("the beast")
        return [[math.nan if one == NOT_A_NUMBER else float(one) for one in own] for own in documents]

    def free(self) -> None:
        self.freed += 1


def outcomes(batch: Sequence[Slice], machine: Machine, budget: Budget | None = None) -> dict[Job, list[float] | str]:
    """What became of each job; it is done with as the engine does."""
    found: dict[Job, list[float] | str] = {}
    for one, outcome in scored(batch, machine, budget or Budget(100), machine.free):
        if isinstance(outcome, EngineError):
            one.job.fail(outcome)
            found[one.job] = str(outcome)
        else:
            own = found.setdefault(one.job, [])
            assert isinstance(own, list)
            own.extend(outcome)
            if len(own) == len(one.job.group.suffixes):
                one.job.finish()
    return found


DOCUMENTS = st.lists(st.integers(1, 20) | st.sampled_from([GUILTY, NOT_A_NUMBER]), min_size=1, max_size=6)


@given(st.lists(DOCUMENTS, min_size=1, max_size=8), st.integers(2, 40), st.sampled_from(MEMORY))
def test_the_innocent_are_scored_in_order_and_the_guilty_alone_fail(
    requests: list[list[int]], memory: int, failure: Callable[[], Exception]
) -> None:
    batch = [piece(*documents) for documents in requests]
    found = outcomes(batch, Machine(memory, failure))
    for one, documents in zip(batch, requests, strict=True):
        if GUILTY in documents or NOT_A_NUMBER in documents:
            said = found[one.job]
            assert isinstance(said, str)
            assert "the beast" in said or "not finite" in said
        else:
            assert found[one.job] == [float(document) for document in documents]


def test_one_guilty_request_costs_few_batches() -> None:
    machine = Machine()
    found = outcomes([piece(*([GUILTY] if number == 37 else [number])) for number in range(64)], machine)
    assert sum(isinstance(outcome, str) for outcome in found.values()) == 1
    assert len(machine.batches) == 1 + 2 * 6


@pytest.mark.parametrize("failure", MEMORY)
def test_a_document_that_alone_does_not_fit_says_so_and_the_others_are_scored(failure: Callable[[], Exception]) -> None:
    small, large = piece(1, 2, 3), piece(4, length=50)
    machine = Machine(20, failure)
    error = None
    for one, outcome in scored([small, large], machine, Budget(100), machine.free):
        if isinstance(outcome, EngineError):
            error = outcome
            one.job.fail(outcome)
        else:
            assert outcome in ([1.0, 2.0], [3.0], [1.0, 2.0, 3.0])
    assert isinstance(error, OutOfMemory)
    assert "51 tokens" in str(error)
    assert machine.freed > 0


def test_other_errors_of_the_machine_are_not_taken_for_a_lack_of_memory() -> None:
    one = piece(1, 2, 3, 4)
    machine = Machine(0, lambda: RuntimeError("an illegal instruction"))
    assert outcomes([one], machine) == {one.job: "The model failed on this request: an illegal instruction"}
    assert len(machine.batches) == 1


def test_the_budget_is_lowered_for_a_while() -> None:
    budget = Budget(1024)
    machine = Machine(300)
    outcomes([piece(*range(1, 1000))], machine, budget)
    assert machine.batches[:3] == [1000, 501, 251]
    assert budget.tokens == 250
    seen = []
    for _ in range(3 * Budget.BATCHES):
        budget.fitted()
        seen.append(budget.tokens)
    assert sorted(set(seen)) == [250, 500, 1000, 1024]
    assert seen == sorted(seen)
    for _ in range(30):
        budget.ran_out(1)
    assert budget.tokens == 1024 // Budget.PARTS


def test_what_nobody_waits_for_is_not_tried_again() -> None:
    first, second = piece(GUILTY), piece(5)
    machine = Machine()

    def leaving(batch: Sequence[Slice]) -> list[list[float]]:
        second.job.future.cancel()
        return machine(batch)

    assert [one.job for one, _ in scored([first, second], leaving, Budget(100), machine.free)] == [first.job]
    assert len(machine.batches) == 2


def test_a_failed_batch_is_not_kept_in_memory() -> None:
    """The second half is computed without the first attempt's tensors."""
    gc.freeze()  # what other tests keep need not be looked at again and again
    kept: list[weakref.ref[torch.Tensor]] = []

    def forward(batch: Sequence[Slice]) -> list[list[float]]:
        gc.collect()
        assert all(reference() is None for reference in kept)
        states = torch.ones(100)
        kept.append(weakref.ref(states))
        if len(batch[0].group.suffixes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [[float(states[0])]]

    try:
        found = [outcome for _, outcome in scored([piece(1, 2)], forward, Budget(100), lambda: None)]
    finally:
        gc.unfreeze()
    assert found == [[1.0], [1.0]]
    assert len(kept) == 3


def test_logits_that_another_request_spoils_are_computed_again() -> None:
    """A model may mix rows of a batch, so that one request's infinity becomes everybody's."""
    guilty, innocent = piece(NOT_A_NUMBER), piece(5, 6)
    machine = Machine()

    def mixing(batch: Sequence[Slice]) -> list[list[float]]:
        logits = machine(batch)
        spoilt = any(math.isnan(logit) for own in logits for logit in own)
        return [[math.nan] * len(own) if spoilt else own for own in logits]

    found = {one.job: outcome for one, outcome in scored([guilty, innocent], mixing, Budget(100), machine.free)}
    assert found[innocent.job] == [5.0, 6.0]
    assert isinstance(found[guilty.job], EngineError)
