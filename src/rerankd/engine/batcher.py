"""The queue of requests, and which of their documents go into the next batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from time import perf_counter

from rerankd.core import PromptGroup, Stage


@dataclass(eq=False)
class Job:
    """A submitted group on its way: `taken` documents are in a batch or done, `logits` are the done ones'.

    on_progress: called from the worker thread with the number of documents that a batch has just scored
    stages: how long the job waited for its first batch (`queue`) and each of its batches took (`model`)
    """

    group: PromptGroup
    future: Future[list[float]]
    on_progress: Callable[[int], object] | None = None
    stages: list[Stage] = field(default_factory=list)
    queued: float = field(default_factory=perf_counter)
    taken: int = 0
    logits: list[float] = field(default_factory=list)

    def take(self, budget: int) -> Slice | None:
        """The next documents that fit into `budget` tokens beside the prefix; None where none does."""
        cost, stop = len(self.group.prefix), self.taken
        for suffix in self.group.suffixes[self.taken :]:
            if cost + len(suffix) > budget:
                break
            cost += len(suffix)
            stop += 1
        return self._cut(stop, cost) if stop > self.taken else None

    def take_one(self) -> Slice:
        """The next document, whatever its length."""
        return self._cut(self.taken + 1, len(self.group.prefix) + len(self.group.suffixes[self.taken]))

    @property
    def waiting(self) -> bool:
        return self.taken < len(self.group.suffixes)

    def _cut(self, stop: int, cost: int) -> Slice:
        start, self.taken = self.taken, stop
        return Slice(self, replace(self.group, suffixes=self.group.suffixes[start:stop]), cost)


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of a job's documents, behind its prefix, as one batch carries them; `cost` is in tokens."""

    job: Job
    group: PromptGroup
    cost: int


class Batcher:
    """Jobs in order of arrival. Not thread-safe: the engine holds its lock around every call."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._jobs: deque[Job] = deque()

    def add(self, job: Job) -> None:
        self._jobs.append(job)

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def next_batch(self) -> list[Slice]:
        """Take documents up to the token budget, from as many jobs as fit; cancelled jobs are dropped.

        A job that does not fit whole gives what fits and goes to the back, so that a long request delays a
        short one by a batch at most. Documents have half the budget at least, whatever their prefix takes. One that
        is longer still makes a batch of its own.
        """
        batch: list[Slice] = []
        used = 0
        for _ in range(len(self._jobs)):
            job = self._jobs.popleft()
            if job.future.done():
                continue
            if batch:
                piece = job.take(self.budget - used)
            else:
                # A long prefix (a query with pictures) is computed once for many documents, and not again and again
                # for the few that it leaves room for.
                room = max(self.budget, len(job.group.prefix) + self.budget // 2)
                piece = job.take(room) or job.take_one()
            if piece is None:
                self._jobs.appendleft(job)
                break
            batch.append(piece)
            used += piece.cost
            if job.waiting:
                self._jobs.append(job)
                break
        return batch

    def waiting(self) -> int:
        """Documents that no batch has taken."""
        return sum(len(job.group.suffixes) - job.taken for job in self._jobs if not job.future.done())

    def drain(self) -> list[Job]:
        """Every waiting job; none waits afterwards."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs
