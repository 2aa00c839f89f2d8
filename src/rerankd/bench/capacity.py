"""What one replica of a running server does: its batches' times by their tokens, how its speed varies, and the most
that it answers.

Everything is read off the server's own count of batches, tokens and seconds at `/metrics`, before and after requests:
first one request at a time, with some of its documents and with all, which shows how the machine's speed varies too;
then more and more of them at a time, until batches are large and the rate rises no more, which shows how much longer
batches take meanwhile;
then requests at some rates below that, beside which the model's latencies stand.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rerankd.bench.fitting import fitted
from rerankd.bench.load import Outcome, Target, Traffic, connect, request, run
from rerankd.bench.measured import Alone, Level, Measured, Work
from rerankd.bench.queueing import Replica, Requests, most_requests
from rerankd.bench.samples import Sample
from rerankd.core import RerankdError
from rerankd.core.counts import counted

if TYPE_CHECKING:
    import aiohttp

PARTS = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of a request's documents, for batches of other sizes."""
SETTLED = 1.05
"""The rate rises no more where twice as many clients get less than this times as much."""
PORTS = {"http": 80, "https": 443}
DIRECT_SECONDS = 5.0
"""A server that takes longer to accept a connection is behind a proxy."""
CROWD = 16
"""Requests in flight for each replica at least, so that batches are seen that are about as large as they get."""
MOST_CLIENTS = 128
LOADS = (0.3, 0.5, 0.7, 0.85)
"""Of the highest rate, at which latencies are measured."""
LEAST = 8
"""Requests of a measurement."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has counted up to now.

    replicas: that take batches
    most: tokens of a batch at most
    threads: that compute batches, of all replicas
    cores: that the server may use
    """

    work: Work
    replicas: int
    most: int
    threads: int
    cores: float

    @classmethod
    def of(cls, text: str, url: str) -> Counts:
        """Of what `url` answers. Raises RerankdError for a server that is no rerankd of one model."""

        def values(name: str) -> list[float]:
            return [float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)]

        work = [values(f"rerankd_{name}") for name in ("batches_total", "batch_tokens_total", "batch_seconds_total")]
        sizes = [values(f"rerankd_{name}") for name in ("max_batch_tokens", "threads", "cores")]
        if any(len(one) != 1 for one in (*work, *sizes)):
            raise RerankdError(f"{url}: these are not the metrics of a rerankd server of this version with one model.")
        running = values("rerankd_replica_up")
        (most,), (threads,), (cores,) = sizes
        replicas = max(int(sum(running)), 1)
        return cls(Work(*(one[0] for one in work)), replicas, int(most), int(threads), cores)

    def replica(self, network: float) -> Replica:
        """One of the replicas, whose speed is not known yet. network: seconds to the server and back"""
        threads = max(round(self.threads / self.replicas), 1)
        cores = self.cores / self.replicas
        return Replica(0.0, 0.0, self.most, network=network, threads=threads, cores=cores)


async def measure(
    target: Target,
    metrics: str,
    samples: Sequence[Sample],
    seconds: float,
    progress: Callable[[str], object] = lambda _: None,
) -> Measured:
    """Measure a server, each load for about `seconds`.

    metrics: the URL of its metrics
    progress: is given a line after each load

    Raises RerankdError where a request fails, and for a server that is no rerankd.
    """
    async with connect(target.headers, target.verify_tls) as session:
        server = Server(session, target, metrics, samples, seconds, await round_trip(target.url), progress)
        alone = await server.one_at_a_time()
        before = await server.counted()  # a model that slept is loaded by now
        whole = [one for one in alone if one.part == 1]
        closed = await server.rising(1 / median([one.outcome.latency for one in whole]), before.replicas)
        found = Measured(
            model=target.model,
            replica=fitted(alone, closed, before.replicas, before.replica(server.network)),
            requests=_requests(whole),
            replicas=before.replicas,
            documents=sum(len(one.outcome.sample.documents) for one in whole) / len(whole),
            sent=sum(len(_body(target, one.outcome.sample)) for one in whole) / len(whole),
            received=sum(one.outcome.received for one in whole) / len(whole),
        )
        best = max(one.answered for one, _ in closed)
        highest = min(best, most_requests(found.replica, found.requests, found.replicas))
        opened = [await server.at(load * highest) for load in LOADS]
        return replace(found, levels=(*(one for one, _ in closed), *opened))


@dataclass(frozen=True, slots=True)
class Server:
    """A server under measurement; see `measure`. network: seconds to the server and back"""

    session: aiohttp.ClientSession
    target: Target
    metrics: str
    samples: Sequence[Sample]
    seconds: float
    network: float
    progress: Callable[[str], object]

    async def counted(self) -> Counts:
        """What it has counted up to now."""
        import aiohttp

        try:
            async with self.session.get(self.metrics) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError) as error:
            raise RerankdError(f"{self.metrics}: no answer ({error}).") from error
        return Counts.of(text, self.metrics)

    async def alone(self, sample: Sample, documents: int) -> Alone:
        """A request of the first documents of a sample. Its latency is without the network."""
        part = replace(sample, documents=sample.documents[:documents], tokens=None)
        before = await self.counted()
        outcome = await request(self.session, self.target, part, _body(self.target, part))
        _check([outcome])
        outcome.latency = max(outcome.latency - self.network, 0.0)
        return Alone(documents / len(sample.documents), (await self.counted()).work - before.work, outcome)

    async def one_at_a_time(self) -> list[Alone]:
        """Requests with equal parts of their documents, and with all."""
        await self.alone(self.samples[0], 1)  # kernels are chosen in it
        found: list[Alone] = []
        whole = 0
        until = time.perf_counter() + self.seconds
        while whole < LEAST or time.perf_counter() < until:
            sample = self.samples[whole % len(self.samples)]
            counts = {math.ceil(len(sample.documents) * part) for part in PARTS}
            found += [await self.alone(sample, count) for count in sorted(counts)]
            whole += 1
        took = median([one.outcome.latency for one in found if one.part == 1])
        self.progress(f"{counted(whole, 'request')}, one at a time: {1000 * took:.1f} ms")
        return found

    async def rising(self, rate: float, replicas: int) -> list[tuple[Level, Work]]:
        """More and more requests at a time, until they are a crowd and their rate rises no more.

        rate: requests a second of one at a time
        """
        levels: list[tuple[Level, Work]] = []
        clients = 2
        while clients <= MOST_CLIENTS:
            one, work = await self.level(max(2 * clients, rate * self.seconds), Traffic(concurrency=clients))
            self.progress(f"{clients} at a time: {one.answered:.1f} requests/s, {one.busy:.0%} busy")
            levels.append((one, work))
            if one.answered < SETTLED * rate and clients >= CROWD * replicas:
                break
            rate, clients = max(rate, one.answered), 2 * clients
        return levels

    async def at(self, rate: float, seed: int = 0) -> Level:
        """So many requests a second, at random times."""
        one, _ = await self.level(rate * self.seconds, Traffic(rate, seed=seed))
        self.progress(f"{rate:.1f} requests/s: p50 {1000 * one.p50:.1f} ms, p99 {1000 * one.p99:.1f} ms")
        return one

    async def level(self, wanted: float, traffic: Traffic) -> tuple[Level, Work]:
        """So many requests."""
        count = max(LEAST, math.ceil(wanted))
        start = await self.counted()
        outcomes, took = await run(self.target, [self.samples[i % len(self.samples)] for i in range(count)], traffic)
        # `run` sends one request more, before its time begins.
        work = ((await self.counted()).work - start.work) * (count / (count + 1))
        _check(outcomes)
        return _level(outcomes, took, work, start.replicas, traffic), work


async def round_trip(url: str) -> float:
    """Seconds to a server and back, by how long a connection takes; 0 where there is no direct one."""
    parts = urlsplit(url)
    took = []
    for _ in range(LEAST):
        start = time.perf_counter()
        try:
            opening = asyncio.open_connection(parts.hostname, parts.port or PORTS[parts.scheme])
            _, writer = await asyncio.wait_for(opening, DIRECT_SECONDS)
        except (OSError, asyncio.TimeoutError):
            return 0.0
        took.append(time.perf_counter() - start)
        writer.close()
    return min(took)


def _requests(whole: Sequence[Alone]) -> Requests:
    """Tokens that were computed for each request alone; the longest prompt as if a request's were equally long."""
    longest = max(math.ceil(one.work.tokens / len(one.outcome.sample.documents)) for one in whole)
    return Requests([round(one.work.tokens) for one in whole], longest)


def _level(outcomes: Sequence[Outcome], took: float, work: Work, replicas: int, traffic: Traffic) -> Level:
    import numpy

    p50, p99 = numpy.percentile([outcome.latency for outcome in outcomes], (50, 99))
    rate = None if traffic.rate == float("inf") else traffic.rate
    busy = min(work.seconds / (took * replicas), 1.0)
    return Level(traffic.concurrency, rate, len(outcomes), len(outcomes) / took, busy, float(p50), float(p99))


def _check(outcomes: Sequence[Outcome]) -> None:
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise RerankdError(f"{len(failed)} of {counted(len(outcomes), 'request')} failed: {failed[0]}")


def _body(target: Target, sample: Sample) -> bytes:
    return json.dumps(target.api.body(target.model, sample)).encode()
