"""The queue of requests, and which of their documents go into the next batch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count, islice
from time import perf_counter

from rerankd.core import EngineBusy, PromptGroup, Segment, Stage

STALE = 64
"""The heap may have as many stale entries as there are jobs, and this many more, before it is rebuilt."""


@dataclass(eq=False)
class Job:
    """A submitted group: `taken` documents are in a batch or done, and `logits` has the logits of the done documents.

    started: whether a batch has taken a document
    on_progress: called from the worker thread with the number of documents that a batch has just scored
    stages: how long the job waited for its first batch (`queue`) and each of its batches took (`model`)
    cost: tokens to compute for the documents that no batch has taken, the prefix included
    """

    group: PromptGroup
    future: Future[list[float]]
    on_progress: Callable[[int], object] | None = None
    stages: list[Stage] = field(default_factory=list)
    queued: float = field(default_factory=perf_counter)
    started: bool = False
    taken: int = 0
    logits: list[float] = field(default_factory=list)
    cost: int = field(init=False)
    _claim: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.cost = len(self.group.prefix) + sum(map(len, self.group.suffixes))

    def take(self, budget: int) -> Slice | None:
        """The next documents that fit into `budget` tokens beside the prefix; None if none does."""
        cost, stop = len(self.group.prefix), self.taken
        for suffix in islice(self.group.suffixes, self.taken, None):
            if cost + len(suffix) > budget:
                break
            cost += len(suffix)
            stop += 1
        return self._cut(stop, cost) if stop > self.taken else None

    def take_all(self) -> Slice:
        """All documents that no batch has taken."""
        return self._cut(len(self.group.suffixes), self.cost)

    def take_one(self) -> Slice:
        """The next document, whatever its length."""
        return self._cut(self.taken + 1, len(self.group.prefix) + len(self.group.suffixes[self.taken]))

    @property
    def waiting(self) -> bool:
        """Whether a document waits for a batch, and a caller waits for the answer."""
        return self.taken < len(self.group.suffixes) and self.waited_for

    @property
    def waited_for(self) -> bool:
        """Whether the job is not answered yet, and a caller waits for the answer."""
        return not self.future.done()

    def finish(self) -> None:
        """Answer the job with its logits, unless it is answered or cancelled already."""
        if self._claim.acquire(blocking=False) and self.future.set_running_or_notify_cancel():
            self.future.set_result(self.logits)

    def fail(self, error: Exception) -> None:
        """Answer the job with an error, unless it is answered or cancelled already."""
        if self._claim.acquire(blocking=False) and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _cut(self, stop: int, cost: int) -> Slice:
        start, self.taken = self.taken, stop
        self.cost -= cost - len(self.group.prefix)
        whole = stop - start == len(self.group.suffixes)
        group = self.group if whole else replace(self.group, suffixes=self.group.suffixes[start:stop])
        return Slice(self, group, cost)


@dataclass(frozen=True, slots=True)
class Slice:
    """The documents of a job in one batch, behind its prefix. `cost` is in tokens."""

    job: Job
    group: PromptGroup
    cost: int

    def split(self, documents: int) -> tuple[Slice | None, Slice | None]:
        """The first documents, and the rest; None for an empty part."""
        suffixes = self.group.suffixes
        return self._of(suffixes[:documents]), self._of(suffixes[documents:])

    def _of(self, suffixes: tuple[Segment, ...]) -> Slice | None:
        cost = len(self.group.prefix) + sum(map(len, suffixes))
        return Slice(self.job, replace(self.group, suffixes=suffixes), cost) if suffixes else None


class Batcher:
    """Chooses the documents that are scored next. Not thread-safe: the engine holds its lock around every call.

    Half of each batch is for the jobs with the least left to compute, as far as they fit into it whole; the rest goes
    to jobs in order of arrival. So

    - a job is whole in the next batch if it fits into half of one beside all that are as short or shorter,
      however much waits before it;
    - a job is done no later than if all that came before it had half of every batch, whatever comes after it: nothing
      that keeps coming can starve it;
    - a long job is cut only where a batch ends, and its prefix is computed once a batch at most.

    budget: tokens of a batch; it may be changed at any time
    documents, tokens: documents that no batch has taken, and the tokens to compute for them
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.documents = 0
        self.tokens = 0
        self._arrivals = count()
        self._jobs: OrderedDict[Job, int] = OrderedDict()  # in order of arrival, with its number
        # By cost and arrival. An entry is passed over when its job has left the queue, or costs less by now.
        self._shortest: list[tuple[int, int, Job]] = []

    def expect_place(self, job: Job, most: int | None) -> None:
        """Raise EngineBusy if a job and the waiting jobs have more than `most` tokens. A job alone may have any
        number."""
        if most is not None and self.tokens and self.tokens + job.cost > most:
            raise EngineBusy(
                f"This request has {job.cost} tokens, and {self.tokens} wait for the model already. That is too "
                "many. Send it again later, or start the server with a larger --max-queued-tokens."
            )

    def add(self, job: Job) -> None:
        """Append a job to the queue."""
        self._jobs[job] = next(self._arrivals)
        self._count(job, 1)
        self._push(job)

    def drop(self, job: Job) -> None:
        """Remove a job from the queue, if it is there."""
        if job in self._jobs:
            self._count(job, -1)
            self._remove(job)

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __len__(self) -> int:
        """The number of jobs with documents that no batch has taken."""
        return len(self._jobs)

    def next_batch(self) -> list[Slice]:
        """Take documents up to the token budget; jobs that nobody waits for are dropped.

        The first job in order of arrival gives one document at least, and documents of half the tokens that are left to
        it, whatever its prefix takes: a long prefix (a query with images) is computed once for many documents, and
        not again and again for the few that fit beside it. Only there is a batch larger than the budget.
        """
        batch = self._take_shortest(self.budget // 2)
        tokens_left = self.budget - sum(piece.cost for piece in batch)
        first = True
        while self._jobs:
            job = next(iter(self._jobs))
            if not job.waited_for:
                self.drop(job)
                continue
            self._count(job, -1)
            piece = job.take(max(tokens_left, len(job.group.prefix) + tokens_left // 2) if first else tokens_left)
            if first and piece is None:
                piece = job.take_one()
            if job.waiting:
                self._count(job, 1)
                self._push(job)
            else:
                self._remove(job)
            if piece is None:
                break
            batch.append(piece)
            tokens_left -= piece.cost
            first = False
            if job.waiting:
                break
        return batch

    def drain(self) -> list[Job]:
        """Remove and return all waiting jobs."""
        jobs = list(self._jobs)
        for job in jobs:
            self.drop(job)
        return jobs

    def _take_shortest(self, budget: int) -> list[Slice]:
        batch: list[Slice] = []
        while self._shortest:
            cost, arrival, job = self._shortest[0]
            if self._jobs.get(job) != arrival or cost != job.cost:
                heappop(self._shortest)
            elif not job.waited_for:
                self.drop(job)
            elif cost > budget:
                break
            else:
                self._count(job, -1)
                self._remove(job)
                batch.append(job.take_all())
                budget -= cost
        return batch

    def _count(self, job: Job, sign: int) -> None:
        self.documents += sign * (len(job.group.suffixes) - job.taken)
        self.tokens += sign * job.cost

    def _push(self, job: Job) -> None:
        heappush(self._shortest, (job.cost, self._jobs[job], job))

    def _remove(self, job: Job) -> None:
        del self._jobs[job]
        if len(self._shortest) > 2 * len(self._jobs) + STALE:
            self._shortest = [(waiting_job.cost, arrival, waiting_job) for waiting_job, arrival in self._jobs.items()]
            heapify(self._shortest)
