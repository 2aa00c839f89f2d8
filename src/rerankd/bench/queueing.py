"""How long requests take at replicas that share a queue, by the rate at which they arrive: a model, without a server.

Requests arrive at random times (a Poisson process). A replica that is idle takes the tokens that wait, up to a number
of tokens, in order of arrival; a batch takes a fixed time and a time for each of its tokens; a request is answered when
its last batch ends. This is simulated request by request.

All replicas of a server compute at the speed of one `Clock`. And a batch takes longer while the other replicas compute
and other requests are read.

A server's own process and its clients need cores too: requests are read and answered one after the other. Where that
has no core of its own, it shares those of the replicas.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING

from rerankd.bench.clock import Clock
from rerankd.bench.load import Traffic
from rerankd.parallel.sharing import fair_budget

if TYPE_CHECKING:
    from numpy import ndarray

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
    sizes: tokens of batches, ascending, each with how many times as long such a batch takes as the two figures say;
        between them the factor is interpolated
    outside: seconds of a request outside the batches: HTTP, reading, tokenising
    crowded: how many times as long a batch takes if all other replicas compute and requests wait, than for a request
        alone
    network: seconds of a request on its way to the server and back
    threads: that compute a batch
    cores: of its server for each replica; if infinite, requests spend their time outside the batches without waiting
        for others
    trace: for requests alone, one after the other, the seconds that each took, and that the figures above say
    """

    fixed: float
    per_token: float
    most: int
    outside: float = 0.0
    crowded: float = 1.0
    network: float = 0.0
    threads: int = 1
    cores: float = math.inf
    sizes: Sequence[tuple[float, float]] = ((1.0, 1.0),)
    trace: Sequence[tuple[float, float]] = ((1.0, 1.0),)

    def seconds(self, tokens: float) -> float:
        """The seconds of a batch, by the figures."""
        return (self.fixed + self.per_token * tokens) * self._times(tokens)

    def _times(self, tokens: float) -> float:
        place = bisect_left(self.sizes, (tokens, 0.0))
        if place in (0, len(self.sizes)):
            return self.sizes[min(place, len(self.sizes) - 1)][1]
        (fewer, low), (more, high) = self.sizes[place - 1 : place + 1]
        return low + (high - low) * (tokens - fewer) / (more - fewer)

    def speed(self, replicas: int, computing: int, outside: bool) -> float:
        """Of all that is done at a time in a server of so many replicas; 1 where each thread has a core.

        computing: replicas with a batch; outside: whether a request is read or answered
        """
        cores, threads = self.cores * replicas, computing * self.threads
        if threads + outside <= cores:
            return 1.0
        if self.threads == 1 or not computing:
            return cores / (threads + outside)
        # The threads of a batch wait for each other: one of the batches has half its speed where one of its threads has
        # half a core. This is the mean of all.
        return min(cores / threads, 1.0) * (1 - outside / (2 * computing))

    def outside_work(self, replicas: int, computing: int) -> float:
        """Seconds of a request outside the batches if it had that speed: with several threads it has half a core."""
        alone, beside = (self.speed(replicas, computing, outside) for outside in (False, True))
        halved = self.threads > 1 and computing > 0 and beside < alone
        return self.outside * (2 * beside / alone if halved else 1.0)

    def lost(self, replicas: int) -> float:
        """Seconds that replicas, all of which compute, could compute meanwhile and do not, while one request is read
        and answered on their cores."""
        alone, beside = (self.speed(replicas, replicas, outside) for outside in (False, True))
        return replicas * self.outside_work(replicas, replicas) * (alone - beside) / beside

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


def most_requests(replica: Replica, requests: Requests, replicas: int = 1) -> float:
    """Requests a second that replicas of one server compute when their batches are full, and all compute."""
    each = replica.seconds(replica.most) * replica.crowded / replica.most * requests.mean
    rate = replicas * replica.speed(replicas, replicas, False) / (each + replica.lost(replicas))
    in_turn = replica.cores < math.inf and replica.outside > 0
    return (min(rate, 1 / replica.outside) if in_turn else rate) / replica.slower


def latencies(replica: Replica, requests: Requests, rate: float, replicas: int) -> Latencies | None:
    """The latencies of requests that arrive at `rate` requests a second; None if the queue grows without end."""
    if rate >= (highest := most_requests(replica, requests, replicas)):
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
    return _Simulation(replica, requests, replicas, seed).run(due)


class _Simulation:
    """The state of a simulation.

    All work that is done at a time has the same speed. So it ends in the order of what is left of it, whatever the
    speed will be: ends are kept in the work that each replica has been able to do since the start (virtual time).
    """

    def __init__(self, replica: Replica, requests: Requests, replicas: int, seed: int) -> None:
        self._replica, self._requests, self._replicas = replica, requests, replicas
        self._in_order = replica.cores < math.inf
        self._clock, self._random = Clock(replica.trace, Random(seed)), Random(seed)
        self._now, self._virtual, self._worked = 0.0, 0.0, 0.0
        self._ends: list[tuple[float, int, list[int], bool]] = []
        self._started, self._computing = 0, 0
        self._in_turn: deque[int] = deque()
        self._outside = False
        self._waiting: deque[int] = deque()
        self._queued, self._budget = 0, replica.most

    def run(self, due: Sequence[float]) -> Latencies:
        """See `simulate`."""
        import numpy

        left = self._random.choices(self._requests.tokens, k=len(due))
        batches, answered, comes = [0] * len(due), [0.0] * len(due), 0
        while comes < len(due) or self._ends:
            end = self._next_end()
            if comes < len(due) and due[comes] <= end:
                self._pass(due[comes], self._virtual_at(due[comes]))
                self._step_outside(comes)
                comes += 1
                continue
            self._pass(end, self._ends[0][0])
            _, _, numbers, is_batch = heappop(self._ends)
            if is_batch:
                self._computing -= 1
                for number in numbers:
                    batches[number] -= 1
                    if not left[number] and not batches[number]:
                        self._step_outside(number)
            else:
                self._outside = False
                if self._in_turn:
                    self._step_outside(self._in_turn.popleft())
                for number in numbers:
                    if left[number]:
                        self._wait(number, left[number])
                    else:
                        answered[number] = self._now
            self._take(left, batches)
        seconds = numpy.sort(numpy.array(answered) - numpy.array(due)) + self._replica.network
        return Latencies(seconds, self._worked / self._replicas / self._now)

    @property
    def _speed(self) -> float:
        return self._replica.speed(self._replicas, self._computing, self._outside)

    def _next_end(self) -> float:
        if not self._ends:
            return math.inf
        return self._clock.end(self._now, (self._ends[0][0] - self._virtual) / self._speed)

    def _virtual_at(self, moment: float) -> float:
        work = self._clock.work(self._now, moment) if self._ends else 0.0
        return self._virtual + work * self._speed

    def _pass(self, moment: float, virtual: float) -> None:
        self._worked += self._computing * (moment - self._now)
        self._now, self._virtual = moment, virtual

    def _start(self, work: float, numbers: list[int], is_batch: bool) -> None:
        heappush(self._ends, (self._virtual + work, self._started, numbers, is_batch))
        self._started += 1

    def _step_outside(self, number: int) -> None:
        """A request's time before its batches or after them; each is half of what it spends outside."""
        if self._outside:
            self._in_turn.append(number)
            return
        self._outside = self._in_order
        self._start(self._replica.outside_work(self._replicas, self._computing) / 2, [number], False)

    def _wait(self, number: int, tokens: int) -> None:
        self._waiting.append(number)
        self._queued += tokens
        self._budget = _budget(self._replica, self._requests, self._replicas, self._queued)

    def _take(self, left: list[int], batches: list[int]) -> None:
        """Replicas that compute nothing take the tokens that wait."""
        while self._waiting and self._computing < self._replicas:
            batch, taken = list[int](), 0
            while self._waiting and taken < self._budget:
                number = self._waiting[0]
                part = min(left[number], self._budget - taken)
                taken += part
                left[number] -= part
                batches[number] += 1
                batch.append(number)
                if not left[number]:
                    self._waiting.popleft()
            self._queued -= taken
            others = self._computing + (len(self._waiting) > 0 or len(batch) > 1)
            crowded = 1 + (self._replica.crowded - 1) * others / self._replicas
            self._computing += 1
            self._start(self._replica.seconds(taken) * crowded, batch, True)


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
    low, high = 0.0, most_requests(replica, requests, replicas)
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
