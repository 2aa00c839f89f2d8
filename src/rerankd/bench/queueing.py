"""How long requests take at replicas that share a queue, by the rate at which they arrive: a model, without a server.

Requests arrive at random times (a Poisson process). A replica that is idle takes the tokens that wait, up to a number
of tokens, in order of arrival; a batch takes a fixed time and a time for each of its tokens; a request is answered when
its last batch ends. This is simulated request by request.

No machine has one speed: on a shared host it varies by the second, for all that runs there. So times are those of a
`Clock`, which goes as fast as a real machine went, in contiguous pieces of what was measured there (a moving block
bootstrap: Künsch, "The jackknife and the bootstrap for general stationary observations", 1989). All replicas of a
server have the same clock. And a batch takes longer while the other replicas compute and other requests are read.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING

from rerankd.bench.load import Traffic
from rerankd.parallel.sharing import fair_budget

if TYPE_CHECKING:
    from numpy import ndarray

BLOCK = 5.0
"""Seconds of a contiguous piece of what was measured: as long as slow spells are, or longer."""
SECONDS = 120.0
FULL = 4000
"""Seconds of a simulation at least, and its requests at the highest rate."""
LEAST, MOST = 1000, 20_000
"""Requests of a simulation at least and at most."""
RUNS = 60
"""Simulations of as many requests as were measured at a rate."""
ONE_SERVER = 64
"""Replicas of one server at most."""
HALVINGS = 7


@dataclass(frozen=True, slots=True)
class Replica:
    """The measured speed of one replica.

    fixed: seconds of any batch, beside those of its tokens
    per_token: seconds of each token of a batch
    most: the most tokens of a batch
    outside: seconds of a request outside the batches: HTTP, reading, tokenising
    crowded: how many times as long a batch takes if all other replicas compute and requests wait, than for a request
        alone
    trace: for requests alone, one after the other, the seconds that each took, and that the figures above say
    """

    fixed: float
    per_token: float
    most: int
    outside: float = 0.0
    crowded: float = 1.0
    trace: Sequence[tuple[float, float]] = ((1.0, 1.0),)

    def seconds(self, tokens: float) -> float:
        """The seconds of a batch, by the figures."""
        return self.fixed + self.per_token * tokens

    @property
    def slower(self) -> float:
        """How many times as long everything took in the trace as the figures say."""
        return sum(took for took, _ in self.trace) / sum(said for _, said in self.trace)

    def slowest(self, percent: float) -> float:
        """How many times as long what was slower than so many percent of the trace took as the figures say."""
        rising = sorted((took / said, took) for took, said in self.trace)
        left = percent / 100 * sum(took for _, took in rising)
        for times, took in rising:
            left -= took
            if left <= 0:
                return times
        return rising[-1][0]


@dataclass(frozen=True, slots=True)
class Requests:
    """Typical requests. tokens: to compute for each; longest: tokens of the longest prompt of a document"""

    tokens: Sequence[int]
    longest: int

    @property
    def mean(self) -> float:
        """Tokens of a request."""
        return sum(self.tokens) / len(self.tokens)


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latencies of all requests, by the model of the queue.

    seconds: of each request, ascending
    busy: the share of its time that a replica computes
    """

    seconds: ndarray
    busy: float

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the requests take at most."""
        import numpy

        return float(numpy.percentile(self.seconds, percent))

    @property
    def mean(self) -> float:
        """Seconds."""
        return float(self.seconds.mean())


class Clock:
    """When work is done by a machine whose speed varies as it did in a trace: pieces of it, from random places."""

    def __init__(self, trace: Sequence[tuple[float, float]], random: Random) -> None:
        """trace: seconds that passed, and the work that was done in them, in seconds of the machine's usual speed"""
        self._trace = trace
        self._random = random
        self._usual = sum(work for _, work in trace) / sum(seconds for seconds, _ in trace)
        self._times, self._works = [0.0], [0.0]

    def end(self, start: float, work: float) -> float:
        """When so much work is done that begins at `start`."""
        if (idle := start - self._times[-1]) > BLOCK:
            # Nothing was done for so long that the speed meanwhile is all the same.
            self._pass(idle, idle * self._usual)
        while self._times[-1] <= start:
            self._extend()
        place = bisect_right(self._times, start) - 1
        speed = self._speed(place)
        done = self._works[place] + (start - self._times[place]) * speed + work
        while self._works[-1] < done:
            self._extend()
        place = max(bisect_left(self._works, done, place) - 1, place)
        return max(self._times[place] + (done - self._works[place]) / self._speed(place), start)

    def _speed(self, place: int) -> float:
        times, works = self._times, self._works
        return (works[place + 1] - works[place]) / (times[place + 1] - times[place])

    def _extend(self) -> None:
        place, block = self._random.randrange(len(self._trace)), 0.0
        for number in range(len(self._trace)):
            seconds, work = self._trace[(place + number) % len(self._trace)]
            self._pass(seconds, work)
            block += seconds
            if block >= BLOCK:
                break

    def _pass(self, seconds: float, work: float) -> None:
        self._times.append(self._times[-1] + seconds)
        self._works.append(self._works[-1] + work)


def most_requests(replica: Replica, requests: Requests) -> float:
    """Requests a second that a replica computes when its batches are full, and all others compute too."""
    full = replica.seconds(replica.most) * replica.crowded * replica.slower
    return replica.most / full / requests.mean


def latencies(replica: Replica, requests: Requests, rate: float, replicas: int) -> Latencies | None:
    """The latencies of requests that arrive at `rate` requests a second; None if the queue grows without end."""
    if rate >= (highest := replicas * most_requests(replica, requests)):
        return None
    # As long at all rates, so that all of them see the same of the machine.
    count = math.ceil(min(max(rate * max(SECONDS, FULL / highest), LEAST), MOST))
    return simulate(replica, requests, Traffic(rate).departures(count), replicas)


def runs(replica: Replica, requests: Requests, rate: float, replicas: int, count: int) -> list[Latencies]:
    """The latencies in several simulations of `count` requests, each from an empty queue, as in a measurement."""
    due = [Traffic(rate, seed=seed).departures(count) for seed in range(RUNS)]
    return [simulate(replica, requests, one, replicas, seed) for seed, one in enumerate(due)]


def simulate(replica: Replica, requests: Requests, due: Sequence[float], replicas: int, seed: int = 0) -> Latencies:
    """The latencies of requests that come at the seconds of `due`, ascending, until all are answered."""
    import numpy

    clock = Clock(replica.trace, Random(seed))
    left = Random(seed).choices(requests.tokens, k=len(due))
    ready = [clock.end(moment, replica.outside) for moment in due]
    ends, free = [0.0] * len(due), [0.0] * replicas
    waiting: deque[int] = deque()
    comes, queued, budget, worked, now = 0, 0, replica.most, 0.0, 0.0
    while waiting or comes < len(due):
        # A replica that was idle before takes what is left by the one that took before it, and at the same time.
        now = max(heappop(free), now)
        if not waiting:
            now = max(now, ready[comes])
        while comes < len(due) and ready[comes] <= now:
            waiting.append(comes)
            queued += left[comes]
            budget = _budget(replica, requests, replicas, queued)
            comes += 1
        batch, taken = list[int](), 0
        while waiting and taken < budget:
            number = waiting[0]
            part = min(left[number], budget - taken)
            taken += part
            left[number] -= part
            batch.append(number)
            if not left[number]:
                waiting.popleft()
        queued -= taken
        others = sum(end > now for end in free) + (len(waiting) > 0 or len(batch) > 1)
        crowded = 1 + (replica.crowded - 1) * others / replicas
        end = clock.end(now, replica.seconds(taken) * crowded)
        worked += end - now
        heappush(free, end)
        for number in batch:
            ends[number] = max(ends[number], end)
    seconds = numpy.sort(numpy.array(ends) - numpy.array(due))
    return Latencies(seconds, worked / replicas / max(ends))


def replicas_needed(replica: Replica, requests: Requests, rate: float, percent: float, seconds: float) -> int | None:
    """The fewest replicas of one queue with which so many percent of the requests take so long at most.

    None where not even `ONE_SERVER` of them are enough.
    """

    def enough(count: int) -> bool:
        found = latencies(replica, requests, rate, count)
        return found is not None and found.percentile(percent) <= seconds

    low, high = math.floor(rate / most_requests(replica, requests)) + 1, ONE_SERVER
    if low > high or not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def rate_at(replica: Replica, requests: Requests, replicas: int, percent: float, seconds: float) -> float:
    """Requests a second at which so many percent take so long at most, of one queue; 0 where none do."""
    low, high = 0.0, replicas * most_requests(replica, requests)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = latencies(replica, requests, middle, replicas)
        low, high = (middle, high) if found is not None and found.percentile(percent) <= seconds else (low, middle)
    return low


def _budget(replica: Replica, requests: Requests, replicas: int, waiting: int) -> int:
    """Tokens of a batch when so many wait; see `Replicas`. The only process of a server takes whatever fits."""
    if replicas == 1:
        return replica.most
    return fair_budget(waiting, min(requests.longest, replica.most), replica.most, replicas)
