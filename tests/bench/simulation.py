"""A server of replicas under a virtual clock: the real queue, batches whose time is linear in their tokens, and a
machine whose speed varies."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy

from rerankd.bench.clock import BLOCK
from rerankd.bench.queueing import Replica, Requests
from rerankd.core import PromptGroup, Segment
from rerankd.engine.batcher import Batcher, Job, Slice
from rerankd.parallel.sharing import fair_budget


@dataclass(frozen=True, slots=True)
class Simulated:
    """What was seen.

    latencies: seconds of each request, in order of arrival
    computed: documents of all batches
    busy: the share of the replicas' time in batches, until the last has ended
    """

    latencies: Sequence[float]
    computed: int
    busy: float

    def percentile(self, percent: float) -> float:
        return float(numpy.percentile(self.latencies, percent))

    @property
    def mean(self) -> float:
        return float(numpy.mean(self.latencies))


def arrivals(requests: Requests, rate: float, count: int, seed: int) -> list[tuple[float, int]]:
    """When requests come, by a Poisson process, and their tokens."""
    generator, now, found = random.Random(seed), 0.0, []
    for _ in range(count):
        now += generator.expovariate(rate)
        found.append((now, generator.choice(requests.tokens)))
    return found


def spells(seed: int, slow: float = 2.0) -> list[tuple[float, float]]:
    """A minute of a machine that is `slow` times as slow for a while, a second or more, and usual again for a while."""
    generator, pieces, times = numpy.random.default_rng(seed), list[tuple[float, float]](), 1.0
    while sum(took for took, _ in pieces) < 60:
        times = slow if times == 1 else 1.0
        for _ in range(int(generator.integers(20, 60))):
            work = float(generator.uniform(0.01, 0.05))
            pieces.append((work * times * float(generator.lognormal(0, 0.1)), work))
    return pieces


class Machine:
    """How much work is done by when, as a curve from points: the same pieces as a trace has, in random order."""

    def __init__(self, replica: Replica, seconds: float, seed: int) -> None:
        """seconds: how long the curve is at least"""
        generator, pieces = numpy.random.default_rng(seed), numpy.array(replica.trace)
        starts = numpy.cumsum(pieces[:, 0])
        rows, length = [numpy.zeros((1, 2))], 0.0
        while length < seconds:
            turned = numpy.roll(pieces, -int(generator.integers(len(pieces))), axis=0)
            block = turned[: 1 + int(numpy.searchsorted(numpy.cumsum(turned[:, 0]), min(BLOCK, starts[-1]) - 1e-9))]
            rows.append(block)
            length += block[:, 0].sum()
        self.times, self.works = numpy.ascontiguousarray(numpy.cumsum(numpy.concatenate(rows), axis=0).T)

    def end(self, start: float, work: float) -> float:
        """When so much work is done that begins then."""
        done = numpy.interp(start, self.times, self.works) + work
        assert done <= self.works[-1], "the curve is too short"
        return float(numpy.interp(done, self.works, self.times))

    def work(self, start: float, end: float) -> float:
        """What is done between two times."""
        assert end <= self.times[-1], "the curve is too short"
        first, last = numpy.interp([start, end], self.times, self.works)
        return float(last - first)


@dataclass(slots=True)
class Task:
    """Something that is computed. left: seconds of work; job: of a visit outside the batches; batch: of a replica"""

    left: float
    job: Job | None = None
    batch: Sequence[Slice] = ()


def documents(tokens: int, longest: int) -> list[int]:
    """Of a request: as long as `longest`, and the rest."""
    return [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])


def shared(replica: Replica, replicas: int, tasks: Sequence[Task], serial: bool) -> list[float]:
    """The speeds of these tasks."""
    cores, batches = replica.cores * replicas, [task for task in tasks if not task.job]
    threads = len(batches) * replica.threads + (serial and len(batches) < len(tasks))
    if threads <= cores:
        return [1.0] * len(tasks)
    if replica.threads == 1:
        return [cores / threads] * len(tasks)
    # A request is on a core of the first of them, all of whose threads wait for the one that has half a core.
    return [0.5 if task.job or task is batches[0] else 1.0 for task in tasks]


def simulate(
    replica: Replica,
    longest: int,
    comes: Sequence[tuple[float, int]],
    replicas: int,
    seed: int = 0,
) -> Simulated:
    """Requests of so many tokens, each at its time, from an empty queue until the last is answered.

    Replicas share their cores with what is done for requests outside the batches, one request after the other. If they
    have several threads, this is done on one core of one of them.
    """
    queue = Batcher(replica.most)
    alone = sum(replica.seconds(tokens) + replica.outside for _, tokens in comes)
    machine = Machine(replica, 10 + 3 * (comes[-1][0] + alone) * replica.slower * replica.crowded, seed)
    segments: dict[int, Segment] = {}
    serial = replica.cores < math.inf
    tasks, visits = list[Task](), list[Task]()
    number, left, born = dict[Job, int](), dict[Job, int](), dict[Job, float]()
    latencies, computed, worked, now = [0.0] * len(comes), 0, 0.0, 0.0

    def visit(job: Job) -> None:
        task = Task(replica.outside / 2, job)
        (visits if serial and any(one.job for one in tasks) else tasks).append(task)

    while len(number) < len(comes) or tasks:
        computing = sum(not one.job for one in tasks)
        speeds = dict(zip(map(id, tasks), shared(replica, replicas, tasks, serial), strict=True))
        first = min(tasks, key=lambda one: one.left / speeds[id(one)], default=None)
        end = machine.end(now, first.left / speeds[id(first)]) if first else math.inf
        arrives = len(number) < len(comes) and comes[len(number)][0] <= end
        then = comes[len(number)][0] if arrives else end
        done = machine.work(now, then) if arrives else first.left / speeds[id(first)] if first else 0.0
        for task in tasks:
            task.left -= speeds[id(task)] * done
        worked, now = worked + computing * (then - now), then
        if arrives:
            lengths = documents(comes[len(number)][1], longest)
            suffixes = tuple(segments.setdefault(length, Segment([0] * length)) for length in lengths)
            job = Job(PromptGroup(Segment([]), suffixes, (False,) * len(suffixes)), Future())
            born[job], left[job], number[job] = now, len(suffixes), len(number)
            visit(job)
            continue
        assert first is not None
        tasks.remove(first)
        if visits and first.job:
            tasks.append(visits.pop(0))
        if first.job and left[first.job]:
            queue.add(first.job)
            if replicas > 1:
                queue.budget = fair_budget(queue.tokens, longest, replica.most, replicas)
        elif first.job:
            latencies[number[first.job]] = now - born[first.job]
        for piece in first.batch:
            computed += len(piece.group.suffixes)
            left[piece.job] -= len(piece.group.suffixes)
            if not left[piece.job]:
                visit(piece.job)
        while queue and (computing := sum(not one.job for one in tasks)) < replicas:
            batch = queue.next_batch()
            beside = computing + bool(queue or len({piece.job for piece in batch}) > 1)
            work = replica.seconds(sum(piece.cost for piece in batch))
            tasks.append(Task(work + work * (replica.crowded - 1) * beside / replicas, batch=batch))
    return Simulated(latencies, computed, worked / replicas / now)
