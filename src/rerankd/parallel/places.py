"""A replica as the queue sees it, and the parts of jobs that it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rerankd.core import ReplicaLoad, Stage
from rerankd.engine.batcher import Job, Slice
from rerankd.parallel.processes import Replica
from rerankd.parallel.replica_messages import Drop, Ping, Scored

AHEAD_SECONDS = 0.05
"""A replica that will be done within this time gets its next batch already, so that it does not wait for a message."""


@dataclass(eq=False)
class Part:
    """The documents of a job in one batch. tries: the number of processes that ended while they computed the part"""

    number: int
    slice: Slice
    tries: int = 0
    logits: list[float] | None = None


@dataclass(eq=False)
class Parts:
    """The parts of a job that batches have taken, in order.

    reported: the number of first parts whose documents are reported as done
    """

    job: Job
    taken: list[Part] = field(default_factory=list)
    reported: int = 0

    def took(self, stages: tuple[Stage, ...]) -> None:
        """Record the time of a batch. The first also gives the waiting time, since all processes have one clock."""
        if stages and not self.job.started:
            self.job.started = True
            self.job.stages.append(Stage("queue", self.job.queued, max(stages[0].began - self.job.queued, 0.0)))
        self.job.stages += stages

    def tell(self) -> int:
        """The number of newly done documents; a document counts when all documents before it are done."""
        before = self.reported
        while self.reported < len(self.taken) and self.taken[self.reported].logits is not None:
            self.reported += 1
        return sum(len(part.slice.group.suffixes) for part in self.taken[before : self.reported])

    @property
    def done(self) -> bool:
        """Whether all documents are done."""
        return self.reported == len(self.taken) and self.job.taken == len(self.job.group.suffixes)

    def logits(self) -> list[float]:
        """The logits of all documents in order, once all are done."""
        return [logit for part in self.taken for logit in part.logits or ()]


@dataclass(eq=False)
class Place:
    """A replica as the queue sees it.

    replica: the running process; None while there is none
    sends: whether a message to the process is being sent
    batches: the batches without an answer, by number, in the order in which the replica computes them
    drops: dropped parts that the process does not know of yet
    asked: whether the process must be asked for a sign of life
    silent: the number of checks since the last sign of life
    rate: tokens a second of the last batches
    fails: how often in a row a process of the place ended without having scored anything
    given_up: whether no process is started for the place again
    before: the work of earlier processes of the place; now: the work of the present one
    """

    number: int
    replica: Replica | None = None
    sends: bool = False
    batches: dict[int, list[Part]] = field(default_factory=dict)
    drops: list[int] = field(default_factory=list)
    asked: bool = False
    silent: int = 0
    rate: float = 0.0
    starts: int = 0
    fails: int = 0
    given_up: bool = False
    before: tuple[int, int, float] = (0, 0, 0.0)
    now: tuple[int, int, float] = (0, 0, 0.0)

    @property
    def parts(self) -> Iterator[Part]:
        """The parts of all batches without an answer."""
        return (part for parts in self.batches.values() for part in parts)

    @property
    def tokens(self) -> int:
        """The tokens of these parts."""
        return sum(part.slice.cost for part in self.parts)

    def has_room(self, in_flight: int) -> bool:
        """Whether the replica takes another batch. in_flight: the number of batches that it computes at a time"""
        count = len(self.batches)
        return count < in_flight or (count == in_flight and self.tokens <= self.rate * AHEAD_SECONDS)

    def messages(self) -> Iterator[Drop | Ping]:
        """The messages for the process, beside batches. Each is returned once."""
        if self.asked:
            self.asked = False
            yield Ping()
        if self.drops:
            dropped, self.drops = tuple(self.drops), []
            yield Drop(dropped)

    def begins(self, replica: Replica) -> None:
        """Record that a process has started."""
        self.replica = replica
        self.asked, self.silent = False, 0
        self.starts += 1

    def has_done(self, scored: Scored) -> None:
        """Record the work of the process up to now."""
        self.fails = 0
        self.now = scored.batches, scored.tokens, scored.seconds
        self.rate = scored.rate

    def ends(self) -> None:
        """Record that the process has ended."""
        self.replica = None
        self.batches, self.drops = {}, []
        self.before, self.now = self.done, (0, 0, 0.0)
        self.rate = 0.0

    @property
    def done(self) -> tuple[int, int, float]:
        """The work of all processes of the place: batches, tokens, seconds."""
        (batches, tokens, seconds), (more_batches, more_tokens, more_seconds) = self.before, self.now
        return batches + more_batches, tokens + more_tokens, seconds + more_seconds

    def load(self) -> ReplicaLoad:
        """The load for metrics."""
        return ReplicaLoad(self.replica is not None, self.tokens, *self.done, restarts=max(self.starts - 1, 0))
