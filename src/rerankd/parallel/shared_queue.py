"""The one queue of several replicas: the waiting documents, the documents at replicas, and the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from rerankd.core import EngineClosed, ReplicaLost
from rerankd.engine.batcher import Batcher, Job
from rerankd.parallel.places import Part, Parts
from rerankd.parallel.replica_messages import Scored
from rerankd.parallel.sharing import fair_budget

TRIES = 2
"""A request is given up when this number of processes have ended while they computed a part of it."""


@dataclass(slots=True)
class Settled:
    """The effects of a finished batch on its jobs.

    progress: jobs with the number of newly done documents; a document counts when all documents before it are done
    finished: jobs that have all their logits
    failed: jobs with their errors
    """

    progress: list[tuple[Job, int]] = field(default_factory=list)
    finished: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, Exception]] = field(default_factory=list)


class SharedQueue:
    """Jobs on their way to replicas and back. Not thread-safe: `Replicas` holds its lock around every call."""

    def __init__(self, batch_tokens: int, replicas: int) -> None:
        """batch_tokens: the most tokens of a batch"""
        self._batch_tokens = batch_tokens
        self._replicas = replicas
        self._batcher = Batcher(batch_tokens)
        self._longest = 0
        self._numbers = count()
        self._again: deque[Part] = deque()
        self._jobs: dict[Job, Parts] = {}

    def __bool__(self) -> bool:
        """Whether something waits for a replica."""
        return bool(self._batcher) or bool(self._again)

    @property
    def documents(self) -> int:
        """The number of waiting documents."""
        return self._batcher.documents + sum(len(part.slice.group.suffixes) for part in self._again)

    @property
    def tokens(self) -> int:
        """Tokens to compute for the waiting documents."""
        return self._batcher.tokens + sum(part.slice.cost for part in self._again)

    @property
    def requests(self) -> int:
        """The number of requests with a waiting document."""
        return len(self._batcher) + len({part.slice.job for part in self._again if not part.slice.job.waiting})

    def add(self, job: Job, most: int | None) -> None:
        """Put a job at the end. Raises EngineBusy where more than `most` tokens would wait."""
        self._batcher.expect_place(job, most)
        longest = len(job.group.prefix) + max(map(len, job.group.suffixes))
        self._longest = max(self._longest, longest) if self._batcher else longest
        self._batcher.add(job)
        self._batcher.budget = fair_budget(self._batcher.tokens, self._longest, self._batch_tokens, self._replicas)

    def next_number(self) -> int:
        """One that no part and no batch has."""
        return next(self._numbers)

    def take(self) -> list[Part]:
        """The next batch. A part whose process ended goes alone, since it may be why."""
        while self._again:
            part = self._again.popleft()
            if part.slice.job.waited_for:
                return [part]
        parts = []
        for piece in self._batcher.next_batch():
            part = Part(self.next_number(), piece)
            self._jobs.setdefault(piece.job, Parts(piece.job)).taken.append(part)
            parts.append(part)
        return parts

    def settle(self, batch: Iterable[Part], scored: Scored) -> Settled:
        """Note the results of a batch."""
        settled = Settled()
        for part in batch:
            parts, outcome = self._jobs.get(part.slice.job), scored.outcomes.get(part.number)
            if parts is None or outcome is None:
                continue
            parts.took(outcome.stages)
            if outcome.failure is not None:
                settled.failed.append((parts.job, outcome.failure))
                continue
            part.logits = outcome.logits
            settled.progress.append((parts.job, parts.tell()))
            if parts.done:
                parts.job.logits = parts.logits()
                settled.finished.append(parts.job)
        return settled

    def put_back(self, batches: Iterable[Sequence[Part]], running: int) -> list[tuple[Job, Exception]]:
        """Have other replicas compute batches of a process that has ended; the jobs that are given up, with errors.

        batches: in the order in which the process computed them
        running: how many of them it computed at a time: the first may be why it ended
        """
        again: list[Part] = []
        lost: list[tuple[Job, Exception]] = []
        for turn, batch in enumerate(batches):
            for part in batch:
                part.tries += turn < running
                if part.tries < TRIES:
                    again.append(part)
                    continue
                why = f"{part.tries} processes ended while they computed this request; send it again."
                lost.append((part.slice.job, ReplicaLost(why)))
        self._again.extendleft(reversed(again))
        return lost

    def leave(self, job: Job) -> bool:
        """Forget a job that is answered, or that nobody waits for. Whether a replica may have some of it."""
        self._batcher.drop(job)
        if self._jobs.pop(job, None) is None:
            return False
        self._again = deque(part for part in self._again if part.slice.job is not job)
        return True

    def drain(self) -> set[Job]:
        """Remove and return the jobs with waiting documents."""
        waiting = {*self._batcher.drain(), *(part.slice.job for part in self._again)}
        self._again.clear()
        return waiting

    def drain_all(self) -> set[Job]:
        """Remove and return all jobs, also those whose documents are at replicas."""
        return {*self.drain(), *self._jobs}


def closed() -> EngineClosed:
    """The error of a request that an engine has not answered before its end."""
    return EngineClosed("The engine was closed before this request was answered.")
