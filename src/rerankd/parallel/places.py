"""A replica as the queue sees it, and the parts of jobs that it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rerankd.core import ReplicaLoad, Stage
from rerankd.engine.batcher import Job, Slice
from rerankd.parallel.processes import Replica
from rerankd.parallel.replica_messages import Drop, Ping, Scored

AHEAD_SECONDS = 0.05
"""A replica that is done as soon gets its next batch before: what it has to wait for is a message, and seldom long."""


@dataclass(eq=False)
class Part:
    """Some of a job's documents, as a batch carries them. tries: how many processes ended while they computed them"""

    number: int
    slice: Slice
    tries: int = 0
    logits: list[float] | None = None


@dataclass(eq=False)
class Parts:
    """All parts of a job that were taken, in order. told: how many of the first are done and reported"""

    job: Job
    taken: list[Part] = field(default_factory=list)
    told: int = 0

    def took(self, stages: tuple[Stage, ...]) -> None:
        """Note how long a batch took. From the first follows how long the job waited: all processes have one clock."""
        if stages and not self.job.started:
            self.job.started = True
            self.job.stages.append(Stage("queue", self.job.queued, max(stages[0].began - self.job.queued, 0.0)))
        self.job.stages += stages

    def tell(self) -> int:
        """How many more documents are done, of those before which all are."""
        before = self.told
        while self.told < len(self.taken) and self.taken[self.told].logits is not None:
            self.told += 1
        return sum(len(part.slice.group.suffixes) for part in self.taken[before : self.told])

    @property
    def done(self) -> bool:
        """Whether all documents are."""
        return self.told == len(self.taken) and self.job.taken == len(self.job.group.suffixes)

    def logits(self) -> list[float]:
        """Of all documents in order, once all are done."""
        return [logit for part in self.taken for logit in part.logits or ()]


@dataclass(eq=False)
class Place:
    """A replica as the queue sees it.

    replica: its process; None where there is none now
    sends: whether a message is on its way to it
    batches: those that it has not answered, by number, in the order in which it computes them
    drops: parts that it is to be told of
    asked: whether it is to be asked for a sign of life; silent: how often it was looked at since the last such sign
    rate: tokens a second of its last batches
    fails: how often in a row its process ended without having scored anything; over: whether none is started any more
    before: what processes of the place had done that ended; now: what this one has
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
    over: bool = False
    before: tuple[int, int, float] = (0, 0, 0.0)
    now: tuple[int, int, float] = (0, 0, 0.0)

    @property
    def parts(self) -> Iterator[Part]:
        """Of all batches that it has."""
        return (part for parts in self.batches.values() for part in parts)

    @property
    def tokens(self) -> int:
        """Of these."""
        return sum(part.slice.cost for part in self.parts)

    def has_room(self, in_flight: int) -> bool:
        """Whether it takes another batch. in_flight: those that it computes at a time"""
        held = len(self.batches)
        return held < in_flight or (held == in_flight and self.tokens <= self.rate * AHEAD_SECONDS)

    def told(self) -> Iterator[Drop | Ping]:
        """What its process is to be told beside batches. It is told once."""
        if self.asked:
            self.asked = False
            yield Ping()
        if self.drops:
            dropped, self.drops = tuple(self.drops), []
            yield Drop(dropped)

    def begins(self, replica: Replica) -> None:
        """It has a process."""
        self.replica = replica
        self.asked, self.silent = False, 0
        self.starts += 1

    def has_done(self, scored: Scored) -> None:
        """Count what its process has done up to now."""
        self.fails = 0
        self.now = scored.batches, scored.tokens, scored.seconds
        self.rate = scored.rate

    def ends(self) -> None:
        """Its process has ended."""
        self.replica = None
        self.batches, self.drops = {}, []
        self.before, self.now = self.done, (0, 0, 0.0)
        self.rate = 0.0

    @property
    def done(self) -> tuple[int, int, float]:
        """What all its processes have: batches, tokens, seconds."""
        (batches, tokens, seconds), (more_batches, more_tokens, more_seconds) = self.before, self.now
        return batches + more_batches, tokens + more_tokens, seconds + more_seconds

    def load(self) -> ReplicaLoad:
        """For metrics."""
        return ReplicaLoad(self.replica is not None, self.tokens, *self.done, restarts=max(self.starts - 1, 0))
