"""Which documents come next: none lost, none twice, in budget, soon for short requests and never too late."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.core import PromptGroup, Segment
from rerankd.engine.batcher import Batcher, Job, Slice


@dataclass(frozen=True)
class Sizes:
    """A request as lengths: of what its documents share, and of each document."""

    prefix: int
    documents: tuple[int, ...]

    def job(self) -> Job:
        suffixes = tuple(Segment([number] * length) for number, length in enumerate(self.documents))
        return Job(PromptGroup(Segment([9] * self.prefix), suffixes, (False,) * len(suffixes)), Future())


LENGTHS = st.integers(1, 12)
SIZES = st.builds(Sizes, st.integers(0, 30), st.lists(LENGTHS, min_size=1, max_size=12).map(tuple))
BUDGETS = st.integers(2, 60)


@dataclass
class Queue:
    """A batcher in use, held to what it promises at every batch."""

    budget: int
    jobs: list[Job] = field(default_factory=list)
    taken: dict[Job, list[Segment]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.budget)

    def add(self, sizes: Sizes) -> Job:
        job = sizes.job()
        self.jobs.append(job)
        self.taken[job] = []
        self.batcher.add(job)
        return job

    def left(self, job: Job) -> int:
        """Tokens to compute for what no batch has taken, the prefix included; 0 where there is nothing."""
        suffixes = job.group.suffixes[len(self.taken[job]) :]
        return len(job.group.prefix) + sum(map(len, suffixes)) if suffixes and not job.future.done() else 0

    def next_batch(self) -> list[Slice]:
        waiting = [job for job in self.jobs if self.left(job)]
        assert self.batcher.documents == sum(len(job.group.suffixes) - len(self.taken[job]) for job in waiting)
        assert self.batcher.tokens == sum(map(self.left, waiting))
        assert len(self.batcher) == len(waiting)
        assert bool(self.batcher) == bool(waiting)
        # Those that fit whole into half a batch with all that are as short, whatever the order of arrival.
        short, used = set(), 0
        for job in sorted(waiting, key=self.left):
            used += self.left(job)
            if used <= self.budget // 2:
                short.add(job)
        batch = self.batcher.next_batch()
        assert bool(batch) == bool(waiting)
        assert len({piece.job for piece in batch}) == len(batch)
        for piece in batch:
            assert not piece.job.future.done()
            assert piece.cost == len(piece.group.prefix) + sum(map(len, piece.group.suffixes))
            self.taken[piece.job].extend(piece.group.suffixes)
        assert all(not self.left(job) for job in short)
        self.check_size(batch, short)
        # A job is left unfinished only where the batch ends.
        assert all(not self.left(piece.job) for piece in batch[:-1])
        return batch

    def check_size(self, batch: Sequence[Slice], short: set[Job]) -> None:
        """At most the budget; beyond it one document, or documents of half of what is left, of the oldest."""
        own = [piece for piece in batch if piece.job in short]
        available = self.budget - sum(piece.cost for piece in own)
        rest = sum(piece.cost for piece in batch) - sum(piece.cost for piece in own)
        if rest > available:
            (piece,) = (piece for piece in batch if piece.job not in short)
            suffixes = piece.group.suffixes
            assert len(suffixes) == 1 or sum(map(len, suffixes)) <= available // 2


ARRIVALS = st.lists(st.lists(SIZES, max_size=4), max_size=8)
"""What comes before each batch."""


@pytest.mark.slow
@given(ARRIVALS, BUDGETS, st.data())
@settings(max_examples=300)
def test_every_document_is_taken_once_and_in_order_and_none_that_was_cancelled(
    arrivals: list[list[Sizes]], budget: int, data: st.DataObject
) -> None:
    queue = Queue(budget)
    cancelled: dict[Job, int] = {}
    for arriving in arrivals:
        for sizes in arriving:
            queue.add(sizes)
        for job in queue.jobs:
            if queue.left(job) and data.draw(st.integers(0, 5)) == 0:
                job.future.cancel()
                cancelled[job] = len(queue.taken[job])
                queue.batcher.drop(job)
        queue.next_batch()
    while queue.next_batch():
        pass
    for job in queue.jobs:
        assert tuple(queue.taken[job]) == job.group.suffixes[: cancelled.get(job)]
    assert (queue.batcher.documents, queue.batcher.tokens) == (0, 0)


def batches_of_half(requests: Sequence[Sizes], budget: int) -> list[int]:
    """In which batch each request is done, counted from 1, if they are served in order by half of every batch."""
    done, number, rest, first = [], 1, budget - budget // 2, True
    for request in requests:
        left = list(request.documents)
        while left:
            limit = max(rest, request.prefix + rest // 2) if first else rest
            used = request.prefix
            count = 0
            while count < len(left) and used + left[count] <= limit:
                used += left[count]
                count += 1
            if first and not count:
                used, count = used + left[0], 1
            del left[:count]
            rest, first = rest - used, first and not count
            if left:
                number, rest, first = number + 1, budget - budget // 2, True
        done.append(number)
    return done


@pytest.mark.slow
@given(st.lists(SIZES, min_size=1, max_size=6), ARRIVALS, BUDGETS)
@settings(max_examples=500)
def test_no_request_starves_whatever_comes_after_it(first: list[Sizes], later: list[list[Sizes]], budget: int) -> None:
    """Each is done by the batch in which it is if all before it have half of every batch, and nothing else is there."""
    queue = Queue(budget)
    jobs = [queue.add(sizes) for sizes in first]
    bounds = batches_of_half(first, budget)
    for number in range(1, max(bounds) + 1):
        queue.next_batch()
        for job, bound in zip(jobs, bounds, strict=True):
            assert number < bound or not queue.left(job)
        for sizes in later.pop() if later else [Sizes(0, (1,))]:
            queue.add(sizes)


def test_one_document_behind_fifty_requests_is_in_the_next_batch() -> None:
    queue = Queue(8192)
    for _ in range(50):
        queue.add(Sizes(70, (110,) * 200))
    queue.next_batch()
    one = queue.add(Sizes(70, (110,)))
    assert one in [piece.job for piece in queue.next_batch()]


def test_a_prefix_is_computed_once_a_batch_and_seldom_more_often_than_that() -> None:
    """Equal requests are served one after another: only one that a batch's end cuts has its prefix computed again."""
    queue = Queue(1000)
    for _ in range(20):
        queue.add(Sizes(100, (50,) * 30))
    batches = [queue.next_batch() for _ in range(60)]
    while not batches[-1]:
        batches.pop()
    pieces = sum(map(len, batches))
    assert pieces <= 20 + len(batches)
    assert len(batches) <= 1.15 * sum(job.cost + 1500 for job in queue.jobs) / 1000


def test_a_long_prefix_is_not_computed_for_each_of_its_documents() -> None:
    queue = Queue(100)
    queue.add(Sizes(300, (10,) * 8))
    queue.add(Sizes(2, (60,)))
    assert [[len(piece.group.suffixes) for piece in queue.next_batch()] for _ in range(3)] == [[5], [3], [1]]


def test_jobs_that_left_are_not_kept() -> None:
    batcher = Batcher(1)
    batcher.add(Sizes(0, (5,)).job())
    for _ in range(1000):
        job = Sizes(10, (10,)).job()
        batcher.add(job)
        batcher.drop(job)
        batcher.drop(job)
    assert len(batcher) == 1
    assert len(batcher._shortest) < 100
