"""A server of replicas under a virtual clock: the real queue, batches whose time is linear in their tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy

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


def documents(tokens: int, longest: int) -> list[int]:
    """Of a request: as long as `longest`, and the rest."""
    return [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])


def simulate(replica: Replica, longest: int, comes: Sequence[tuple[float, int]], replicas: int) -> Simulated:
    """Requests of so many tokens, each at its time, from an empty queue until the last is answered."""
    queue = Batcher(replica.most)
    segments = {}
    idle = list(range(replicas))
    running: list[tuple[float, int, list[Slice]]] = []
    waits, number, left, born = list(reversed(comes)), dict[Job, int](), dict[Job, int](), dict[Job, float]()
    latencies, computed, worked, now = [0.0] * len(comes), 0, 0.0, 0.0
    while waits or running:
        if waits and (not running or waits[-1][0] <= running[0][0]):
            now, tokens = waits.pop()
            lengths = documents(tokens, longest)
            suffixes = tuple(segments.setdefault(length, Segment([0] * length)) for length in lengths)
            job = Job(PromptGroup(Segment([]), suffixes, (False,) * len(suffixes)), Future())
            number[job], left[job], born[job] = len(number), len(suffixes), now
            queue.add(job)
            if replicas > 1:
                queue.budget = fair_budget(queue.tokens, longest, replica.most, replicas)
        else:
            now, one, batch = heappop(running)
            idle.append(one)
            for piece in batch:
                computed += len(piece.group.suffixes)
                left[piece.job] -= len(piece.group.suffixes)
                if not left[piece.job]:
                    latencies[number[piece.job]] = now - born[piece.job] + replica.outside
        while idle and queue:
            batch = queue.next_batch()
            took = replica.seconds(sum(piece.cost for piece in batch))
            worked += took
            heappush(running, (now + took, idle.pop(0), batch))
    return Simulated(latencies, computed, worked / replicas / now)
