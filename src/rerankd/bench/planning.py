"""What a measured replica means for a load: how many of them, and how long requests take then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rerankd.bench.measured import Level, Measured
from rerankd.bench.queueing import (
    ONE_SERVER,
    Latencies,
    Replica,
    Requests,
    latencies,
    most_requests,
    rate_at,
    replicas_needed,
    runs,
)
from rerankd.bench.rounds import Spread
from rerankd.core import RerankdError
from rerankd.core.counts import counted, noun

PERCENT = 99
LEAST_NETWORK = 0.0005
"""Seconds of which a table tells."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A load and how long requests may take. seconds: 99 % of them at most; rate: requests a second"""

    rate: float
    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise RerankdError(f"--request-rate: {self.rate} is not above 0, or has no end.")
        if not self.seconds > 0:
            raise RerankdError(f"--p99-ms: {1000 * self.seconds} is not above 0.")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to serve a load: servers that each have a part of it, chosen at random, and replicas behind one queue.

    replicas: of each server
    busy: the share of its time that a replica computes
    mean, p50, p99: seconds
    """

    servers: int
    replicas: int
    busy: float
    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, servers: int, replicas: int, found: Latencies) -> Way:
        return cls(servers, replicas, found.busy, found.mean, found.percentile(50), found.percentile(PERCENT))

    def __str__(self) -> str:
        return (
            f"{_all(self.servers, self.replicas)}, "
            f"mean {1000 * self.mean:.1f} ms, p50 {1000 * self.p50:.1f} ms, p99 {1000 * self.p99:.1f} ms, "
            f"{self.busy:.0%} busy"
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """Servers like the one that was measured, each with the highest rate at which that one kept the latency.

    replicas: of each server
    rate: requests a second of each server, as they were measured
    p99: seconds, as measured at that rate
    """

    servers: int
    replicas: int
    rate: float
    p99: float

    @classmethod
    def of(cls, measured: Measured, wanted: Wanted) -> Observed | None:
        """None where no rate that was measured kept the latency."""
        kept = [one for one in measured.levels if one.rate is not None and one.p99 <= wanted.seconds]
        best = max(kept, key=lambda one: one.rate or 0.0, default=None)
        if best is None or best.rate is None:
            return None
        return cls(math.ceil(wanted.rate / best.rate), measured.replicas, best.rate, best.p99)

    def __str__(self) -> str:
        return (
            f"{_all(self.servers, self.replicas)}, "
            f"{self.rate:.4g} requests/s each, p99 {1000 * self.p99:.1f} ms (as measured)"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """For a load, what is needed.

    one_queue: with all replicas in one server; None where they are too many for one
    apart: with servers of so many replicas each
    observed: by the latencies that were measured rather than by the model's; None where none was short enough
    cores: that reading and tokenising take at most, in all servers' own processes
    bits: of bodies a second, both ways
    """

    wanted: Wanted
    one_queue: Way | None
    apart: Way
    observed: Observed | None
    cores: float
    bits: float

    @classmethod
    def of(cls, measured: Measured, wanted: Wanted, replicas_per_server: int) -> Plan:
        """Raises RerankdError where no number of replicas is enough."""
        replica, requests = measured.replica, measured.requests
        most = rate_at(replica, requests, replicas_per_server, PERCENT, wanted.seconds)
        if not most:
            raise RerankdError(
                f"--p99-ms: more than 1 % of the requests take longer than {1000 * wanted.seconds:g} ms in servers of "
                f"{counted(replicas_per_server, 'replica')}, however few come; ask for more, for fewer documents, or "
                "for a faster replica."
            )
        count = replicas_needed(replica, requests, wanted.rate, PERCENT, wanted.seconds)
        servers = math.ceil(wanted.rate / most)
        each = latencies(replica, requests, wanted.rate / servers, replicas_per_server)
        while each is None or each.percentile(PERCENT) > wanted.seconds:
            # The slowest 1 % of a simulation are a few, and a little less load may hit a slow spell.
            servers += math.ceil(servers / 100)
            each = latencies(replica, requests, wanted.rate / servers, replicas_per_server)
        one = latencies(replica, requests, wanted.rate, count) if count else None
        bits = 8 * wanted.rate * (measured.sent + measured.received)
        return cls(
            wanted,
            Way.of(1, count, one) if count and one else None,
            Way.of(servers, replicas_per_server, each),
            Observed.of(measured, wanted),
            wanted.rate * replica.outside,
            bits,
        )

    def __str__(self) -> str:
        wanted, each = self.wanted, self.cores / self.apart.servers
        return "\n".join(
            [
                f"For {wanted.rate:g} requests/s of which {PERCENT} % take {1000 * wanted.seconds:g} ms at most:",
                f"{self.one_queue} (one server, one queue)"
                if self.one_queue
                else f"One server is not enough, of {ONE_SERVER} replicas or fewer.",
                f"{self.apart} (servers with queues of their own, chosen at random)",
                str(self.observed or f"No rate that was measured had a p99 of {1000 * wanted.seconds:g} ms or less."),
                f"Outside the batches: at most {self.cores:.1f} cores, {each:.2f} in the process of each "
                f"of {counted(self.apart.servers, 'server')}{_told(each)}",
                f"{wanted.rate * self.apart.mean:.0f} requests in flight; {self.bits / 1e6:.1f} Mbit/s of bodies",
            ]
        )

    def json(self) -> dict[str, Any]:
        return asdict(self)


def _all(servers: int, replicas: int) -> str:
    """The number of replicas of all servers, as the beginning of a line."""
    count = servers * replicas
    return f"{count:>7} {noun(count, 'replica')}: {servers} x {replicas}"


def _told(cores: float) -> str:
    """What it means for a server's own process to need so many cores."""
    return "" if cores <= 1 else ", which is more than a process has: take fewer --replicas-per-server"


def table(measured: Measured) -> str:
    """A replica's figures, and its latencies beside those of the model."""
    return "\n".join(_lines(measured))


def _lines(measured: Measured) -> Iterator[str]:
    replica, requests = measured.replica, measured.requests
    most = most_requests(replica, requests)
    full = replica.seconds(replica.most)
    yield f"One replica of {measured.model}; requests of {measured.documents:.1f} documents, {requests.mean:.0f} tokens"
    yield f"  a batch             {1000 * replica.fixed:.2f} ms, and {1e6 * replica.per_token:.2f} ms for 1,000 tokens"
    if larger := replica.sizes[1:]:
        times = ", ".join(f"{times:.2f} ({tokens:.0f} tokens)" for tokens, times in larger)
        yield f"  larger batches      take so many times as long as that: {times}"
    yield f"  its size            {replica.most} tokens at most ({full:.2f} s)"
    yield f"  outside the batches {1000 * replica.outside:.2f} ms of a request"
    if replica.network >= LEAST_NETWORK:
        yield f"  the network         {1000 * replica.network:.2f} ms of a request"
    if replica.cores < math.inf:
        shares = replica.speed(measured.replicas, measured.replicas, True) < 1
        told = "; what is outside the batches takes time from these" if shares else ""
        yield f"  its cores           {replica.cores:g}; threads that compute: {replica.threads}{told}"
    yield (
        f"  its speed           for 80 % of the time, requests alone took {replica.slowest(10):.2f} to "
        f"{replica.slowest(90):.2f} times as long"
    )
    yield f"  beside others       {replica.crowded:.2f} times as long, where all replicas compute and requests wait"
    yield f"  full batches        {most * requests.mean:.0f} tokens/s, {most:.2f} requests/s,"
    yield f"                      {most * measured.documents:.1f} documents/s"
    if closed := [one for one in measured.levels if one.clients is not None]:
        best = max(closed, key=lambda one: one.answered)
        yield (
            f"  the most measured   {best.answered:.2f} requests/s at {best.clients} at a time, {best.busy:.0%} busy "
            f"({counted(measured.replicas, 'replica')})"
        )
    yield from compared(measured, measured.levels, measured.replicas)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the model says of some runs of requests, each as long as one that was measured: the median, and where 80 %
    of the runs are. In seconds."""

    p50: Spread
    p99: Spread
    busy: Spread

    @classmethod
    def of(cls, replica: Replica, requests: Requests, rate: float, replicas: int, count: int) -> Predicted:
        """Of runs of `count` requests that come at so many a second."""
        import numpy

        found = runs(replica, requests, rate, replicas, count)

        def spread(values: list[float]) -> Spread:
            low, middle, high = (float(one) for one in numpy.percentile(values, (10, 50, 90)))
            return Spread(middle, low, high)

        p50, p99 = (spread([one.percentile(percent) for one in found]) for percent in (50, PERCENT))
        return cls(p50, p99, spread([one.busy for one in found]))


def compared(measured: Measured, levels: Sequence[Level], replicas: int) -> Iterator[str]:
    """Latencies at some rates, of so many replicas, beside those of the model of the replica that was measured."""
    opened = [(one, one.rate) for one in levels if one.rate is not None]
    if opened:
        yield f"{'':<12}{'measured':>9}{'':<23}the model"
        yield (
            f"{'requests/s':<12}{'p50, ms':>9}{'p99, ms':>9}{'busy':>7}{'p50, ms':>16}{'p99, ms':>9}{'busy':>7}"
            "   p99 in 80 % of the runs"
        )
    for one, rate in opened:
        found = Predicted.of(measured.replica, measured.requests, rate, replicas, one.requests)
        yield (
            f"{rate:<12.2f}{1000 * one.p50:>9.1f}{1000 * one.p99:>9.1f}{one.busy:>7.0%}"
            f"{1000 * found.p50.median:>16.1f}{1000 * found.p99.median:>9.1f}{found.busy.median:>7.0%}"
            f"   {1000 * found.p99.low:.1f} to {1000 * found.p99.high:.1f}"
        )
