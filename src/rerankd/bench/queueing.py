"""How long requests take at replicas that share a queue, by the rate at which they arrive: a model, without a server.

A batch takes a fixed time and a time for each of its tokens; a replica that is done takes what waits, up to a number of
tokens. With Poisson arrivals the tokens that wait when a batch begins are a Markov chain (Bailey, "On queueing
processes with bulk service", 1954; Neuts, "A general class of bulk queues with Poisson input", 1967; for batches whose
time is linear in their size, Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching", 2021).
The chain is solved here on a grid of tokens, for requests of any mix of sizes in order of arrival. A request waits for
the end of the batch that runs, and is answered at the end of its own.

Several replicas are a queue of several servers. The probability that all are busy is Sakasegawa's ("An approximation
formula L_q = alpha rho^beta / (1 - rho)", 1977), and a request that waits for any of m waits 1/m as long as for one
(Whitt, "Approximations for the GI/G/m queue", 1993). A request that is cut into batches for k of them is computed by k
as one server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerankd.parallel.sharing import fair_budget

if TYPE_CHECKING:
    from numpy import ndarray

STATES = 512
"""Points of the grid."""
FINEST = 16
"""Points for a request of mean size, or for the largest batch where that is smaller; fewer where much waits."""
TAIL = 1e-4
"""The chance of the grid's last sixteenth that is small enough."""
MOMENTS = 8
"""Times within a batch at which requests come."""
NEGLIGIBLE = 1e-8
HALVINGS = 12


@dataclass(frozen=True, slots=True)
class Replica:
    """The measured speed of one replica.

    fixed: seconds of any batch, beside those of its tokens
    per_token: seconds of each token of a batch
    most: the most tokens of a batch
    outside: seconds of a request outside the batches: HTTP, reading, tokenising
    """

    fixed: float
    per_token: float
    most: int
    outside: float = 0.0

    def seconds(self, tokens: float) -> float:
        """The seconds of a batch."""
        return self.fixed + self.per_token * tokens


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

    seconds: ascending; shares: for each, the share of the requests that take at most as long
    busy: the share of its time that a replica computes
    """

    seconds: ndarray
    shares: ndarray
    busy: float

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the requests take at most."""
        place = int(self.shares.searchsorted(percent / 100))
        return float(self.seconds[min(place, len(self.seconds) - 1)])

    @property
    def mean(self) -> float:
        """Seconds."""
        import numpy

        return float((self.seconds * numpy.diff(self.shares, prepend=0.0)).sum())


def most_requests(replica: Replica, requests: Requests) -> float:
    """Requests a second that a replica computes when its batches are full."""
    return replica.most / replica.seconds(replica.most) / requests.mean


def latencies(replica: Replica, requests: Requests, rate: float, replicas: int) -> Latencies | None:
    """The latencies of requests that arrive as a Poisson process of `rate` requests a second.

    None where the queue grows without end.
    """
    if rate >= replicas * most_requests(replica, requests):
        return None
    unit = _finest(replica, requests)
    while unit < replica.most + max(requests.tokens):
        grid = _Grid.of(replica, requests, replicas, unit)
        chain = _Chain.of(grid, rate / grid.teams)
        if chain.starts[-STATES // 16 :].sum() < TAIL:
            return _latencies(grid, chain, alone(replica, requests, replicas), replica.outside, rate / grid.teams)
        unit *= 2
    return None


def alone(replica: Replica, requests: Requests, replicas: int) -> Latencies:
    """The latencies of requests that find all replicas idle."""
    import numpy

    seconds = []
    for tokens in requests.tokens:
        share = _share(replica, requests, replicas, tokens)
        rounds, remainder = divmod(tokens, replicas * share)
        last = replica.seconds(min(remainder, share)) if remainder else 0.0
        seconds.append(replica.outside + rounds * replica.seconds(share) + last)
    return _sorted(numpy.array(seconds), numpy.full(len(seconds), 1 / len(seconds)), 0.0)


def replicas_needed(replica: Replica, requests: Requests, rate: float, percent: float, seconds: float) -> int | None:
    """The fewest replicas of one queue with which `percent` of the requests take at most `seconds`.

    None where no number of them is enough, as a request alone takes longer.
    """

    def enough(count: int) -> bool:
        result = latencies(replica, requests, rate, count)
        return result is not None and result.percentile(percent) <= seconds

    if alone(replica, requests, max(requests.tokens)).percentile(percent) > seconds:
        return None
    low = count = math.floor(rate / most_requests(replica, requests)) + 1
    while not enough(count):
        low, count = count + 1, 2 * count
    while low < count:
        middle = (low + count) // 2
        low, count = (low, middle) if enough(middle) else (middle + 1, count)
    return count


def rate_at(replica: Replica, requests: Requests, replicas: int, percent: float, seconds: float) -> float:
    """Requests a second at which `percent` of the requests of one queue take at most `seconds`; 0 for no such rate."""
    low, high = 0.0, replicas * most_requests(replica, requests)
    if alone(replica, requests, replicas).percentile(percent) > seconds:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        result = latencies(replica, requests, middle, replicas)
        low, high = (middle, high) if result is not None and result.percentile(percent) <= seconds else (low, middle)
    return low


def _finest(replica: Replica, requests: Requests) -> float:
    """Tokens between two points of a grid that has room for the largest request twice."""
    return max(min(requests.mean, replica.most) / FINEST, 2 * max(requests.tokens) / STATES)


def _together(replica: Replica, requests: Requests, replicas: int) -> float:
    """How many replicas a request that finds all of them idle keeps busy, on average by tokens."""
    weighted = [tokens * max(tokens / _share(replica, requests, replicas, tokens), 1.0) for tokens in requests.tokens]
    return min(sum(weighted) / sum(requests.tokens), replicas)


def _share(replica: Replica, requests: Requests, replicas: int, waiting: int) -> int:
    """Tokens of a batch when `waiting` tokens wait; see `Replicas`. A single process takes all tokens that fit."""
    if replicas == 1:
        return replica.most
    return fair_budget(waiting, min(requests.longest, replica.most), replica.most, replicas)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The batches for each number of waiting tokens, counted in units of some tokens.

    A team is the replicas that compute a request together. Index i of an array is for i waiting units.

    sizes: the chance that a request has i units
    taken: the units that a team takes
    seconds: the duration of the team's batch
    kept: the share of the team's replicas that compute
    mean: the mean units of a request
    teams: the number of teams, a fraction where the replicas do not divide
    """

    sizes: ndarray
    taken: ndarray
    seconds: ndarray
    kept: ndarray
    mean: float
    teams: float

    @classmethod
    def of(cls, replica: Replica, requests: Requests, replicas: int, unit: float) -> _Grid:
        import numpy

        sizes = numpy.zeros(STATES)
        for tokens in requests.tokens:
            # A size between two points counts for both, so that the mean stays.
            size = min(tokens / unit, STATES - 2.0)
            below = int(size)
            sizes[below] += 1 - (size - below)
            sizes[below + 1] += size - below
        sizes /= sizes.sum()
        together = _together(replica, requests, replicas)
        waiting = numpy.arange(STATES) * unit
        share = numpy.array([_share(replica, requests, replicas, math.ceil(max(amount, 1))) for amount in waiting])
        taken = numpy.minimum(waiting, together * share)
        seconds = replica.fixed + replica.per_token * numpy.minimum(taken, share)
        units = numpy.minimum(numpy.maximum(numpy.rint(taken / unit), 1), numpy.arange(STATES)).astype(int)
        mean = float((sizes * numpy.arange(STATES)).sum())
        kept = numpy.maximum(numpy.minimum(taken / share, together), 1.0) / together
        return cls(sizes, units, seconds, kept, mean, replicas / together)

    def finished(self, seconds: ndarray, position: ndarray, waiting: ndarray, rate: float) -> ndarray:
        """When requests are answered. A team begins a batch when `seconds` have passed.

        position: where a request's last token stands among those that wait then, in units
        waiting: how many there are, in units
        rate: requests a second that a team gets meanwhile
        """
        import numpy

        seconds, position, waiting = seconds.copy(), position.astype(float), waiting.astype(float)
        open = numpy.arange(len(seconds))
        while len(open):
            state = numpy.clip(numpy.rint(waiting[open]), 1, STATES - 1).astype(int)
            taken, took = self.taken[state], self.seconds[state]
            last = position[open] <= taken + 0.5
            seconds[open] += numpy.where(last, took, took / self.teams)
            position[open] -= taken
            waiting[open] += rate * self.mean * took - taken
            open = open[~last]
        return seconds


@dataclass(frozen=True, slots=True)
class _Chain:
    """A team under a load.

    starts: for each number of units, the chance that so many wait when a batch begins
    next: [STATES, STATES], for each number of units at the beginning of a batch, the chances of the units at its end if
        a request comes meanwhile, with that request's own tokens
    busy: the share of its time that a replica computes
    """

    starts: ndarray
    next: ndarray
    busy: float

    @classmethod
    def of(cls, grid: _Grid, rate: float) -> _Chain:
        """The chain of a team that gets `rate` requests a second."""
        import numpy

        size = numpy.fft.rfft(grid.sizes, 2 * STATES)
        remaining_units = numpy.arange(STATES) - grid.taken
        # Tokens that arrive during a batch have a compound Poisson distribution, and this transform.
        arrive = numpy.exp(rate * grid.seconds[:, None] * (size[None, :] - 1))

        def waits(transform: ndarray) -> ndarray:
            chances = numpy.maximum(numpy.fft.irfft(transform, 2 * STATES, axis=1), 0.0)
            moved = numpy.zeros((STATES, STATES))
            for state, remaining in enumerate(remaining_units):
                moved[state, remaining:] = chances[state, : STATES - remaining]
            # More than the grid has counts as its end.
            moved[:, -1] += numpy.maximum(1 - moved.sum(axis=1), 0.0)
            return moved

        moves = waits(arrive)
        idle = moves[:, 0].copy()
        moves[:, 0] = 0
        first = grid.sizes.copy()
        first[1], first[0] = first[0] + first[1], 0
        moves += idle[:, None] * first[None, :]
        system = (moves[1:, 1:] - numpy.eye(STATES - 1)).T
        system[-1] = 1.0
        starts = numpy.zeros(STATES)
        starts[1:] = numpy.maximum(numpy.linalg.solve(system, numpy.eye(STATES - 1)[-1]), 0.0)
        starts /= starts.sum()
        works, rests = float((starts * grid.seconds).sum()), float((starts * idle).sum()) / rate
        kept = float((starts * grid.seconds * grid.kept).sum()) / works
        return cls(starts, waits(arrive * size[None, :]), kept * works / (works + rests))


def _latencies(grid: _Grid, chain: _Chain, idle: Latencies, outside: float, rate: float) -> Latencies:
    """The latencies of requests: some find an idle team, and the others wait for the first team that is done."""
    import numpy

    waiting = chain.busy ** (math.sqrt(2 * (grid.teams + 1)) - 1)
    seconds = [idle.seconds]
    shares = [numpy.diff(idle.shares, prepend=0.0) * (1 - waiting)]
    meets = chain.starts * grid.seconds
    weights = (meets / meets.sum())[:, None] * chain.next
    before, after = numpy.nonzero(weights > NEGLIGIBLE)
    weight = weights[before, after]
    remaining_units = before - grid.taken[before]
    arrived = numpy.maximum(after - remaining_units - grid.mean, 0.0)
    for moment in (numpy.arange(MOMENTS) + 0.5) / MOMENTS:
        seconds_left = grid.seconds[before] * (1 - moment ** (1 / grid.teams))
        # Whole requests stand before this one: some of the requests that come while the batch runs.
        ahead = numpy.rint(moment * arrived / grid.mean) * grid.mean
        position = numpy.minimum(remaining_units + ahead + grid.mean, after)
        seconds.append(grid.finished(outside + seconds_left, position, after, rate))
        shares.append(weight * waiting / weight.sum() / MOMENTS)
    return _sorted(numpy.concatenate(seconds), numpy.concatenate(shares), chain.busy)


def _sorted(seconds: ndarray, shares: ndarray, busy: float) -> Latencies:
    order = seconds.argsort(kind="stable")
    return Latencies(seconds[order], shares[order].cumsum(), busy)
