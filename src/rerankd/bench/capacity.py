"""What one replica of a running server does: its batches' times by their tokens, how its speed varies, and the most
that it answers.

Everything is read off the server's own count of batches, tokens and seconds at `/metrics`, before and after requests:
first one request at a time, with some of its documents and with all, which shows how the machine's speed varies too;
then more and more of them at a time, until batches are large and the rate rises no more, which shows how much longer
batches take meanwhile;
then requests at some rates below that, beside which the model's latencies stand.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from rerankd.bench.load import Outcome, Target, Traffic, connect, request, run
from rerankd.bench.queueing import Replica, Requests, most_requests
from rerankd.bench.samples import Sample
from rerankd.core import RerankdError

if TYPE_CHECKING:
    import aiohttp

PARTS = (1 / 8, 1 / 4, 1 / 2, 1)
"""Of a request's documents, for batches of other sizes."""
SETTLED = 1.05
"""The rate rises no more where twice as many clients get less than this times as much."""
CROWD = 16
"""Requests in flight for each replica at least, so that batches are seen that are about as large as they get."""
MOST_CLIENTS = 128
FULL = 0.9
"""Replicas have no pause at a rate of so much of the highest: the time between two batches counts as theirs then."""
LOADS = (0.3, 0.5, 0.7, 0.85)
"""Of the highest rate, at which latencies are measured."""
LEAST = 8
"""Requests of a measurement."""


@dataclass(frozen=True, slots=True)
class Work:
    """Batches, their tokens, and seconds."""

    batches: float
    tokens: float
    seconds: float

    def __sub__(self, before: Work) -> Work:
        return Work(self.batches - before.batches, self.tokens - before.tokens, self.seconds - before.seconds)

    def __mul__(self, factor: float) -> Work:
        return Work(self.batches * factor, self.tokens * factor, self.seconds * factor)

    def __add__(self, other: Work) -> Work:
        return Work(self.batches + other.batches, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True, slots=True)
class Alone:
    """A request beside which there was no other. part: of a sample's documents"""

    part: float
    work: Work
    outcome: Outcome

    def outside(self, replicas: int) -> float:
        """Seconds that it spent outside its batches, which so many replicas compute at the same time."""
        return max(self.outcome.latency - self.work.seconds / min(max(self.work.batches, 1), replicas), 0.0)


@dataclass(frozen=True, slots=True)
class Level:
    """Requests at a load.

    clients: requests in flight at a time; None where they came at `rate` a second, whatever was answered
    answered: requests a second
    busy: the share of its time that a replica computed
    p50, p99: seconds
    """

    clients: int | None
    rate: float | None
    requests: int
    answered: float
    busy: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A replica and the requests that it was measured with.

    replicas: of the server, whose loads are `levels`
    documents: of a request, on average
    sent, received: bytes of a request's and an answer's body, on average
    """

    model: str
    replica: Replica
    requests: Requests
    replicas: int
    documents: float
    sent: float
    received: float
    levels: Sequence[Level] = ()

    def json(self) -> dict[str, Any]:
        """For a file, from which `read` makes it again."""
        return asdict(self)

    @classmethod
    def read(cls, content: Any) -> Measured:
        """Raises RerankdError for what no `json` made."""
        try:
            replica, requests = Replica(**content["replica"]), Requests(**content["requests"])
            own = {**content, "replica": replace(replica, trace=tuple((a, b) for a, b in replica.trace))}
            return cls(**{**own, "requests": requests, "levels": tuple(Level(**one) for one in content["levels"])})
        except (TypeError, KeyError, ValueError) as error:
            raise RerankdError(
                f"--measured: not a file of `rerankd bench capacity --save-result` ({error})."
            ) from error


@dataclass(frozen=True, slots=True)
class Counts:
    """What a server has counted up to now. replicas: that take batches; most: tokens of a batch at most"""

    work: Work
    replicas: int
    most: int

    @classmethod
    def of(cls, text: str, url: str) -> Counts:
        """Of what `url` answers. Raises RerankdError for a server that is no rerankd of one model."""

        def values(name: str) -> list[float]:
            return [float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)]

        work = [values(f"rerankd_{name}") for name in ("batches_total", "batch_tokens_total", "batch_seconds_total")]
        most = values("rerankd_max_batch_tokens")
        if any(len(one) != 1 for one in (*work, most)):
            raise RerankdError(f"{url}: these are not the metrics of a rerankd server of this version with one model.")
        running = values("rerankd_replica_up")
        return cls(Work(*(one[0] for one in work)), int(sum(running)) if running else 1, int(most[0]))


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
        server = Server(session, target, metrics, samples, seconds, progress)
        before = await server.counted()
        alone = await server.one_at_a_time()
        whole = [one for one in alone if one.part == 1]
        closed = await server.rising(1 / median([one.outcome.latency for one in whole]), before.replicas)
        found = Measured(
            model=target.model,
            replica=fitted(alone, closed, before.replicas, before.most),
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
    """A server under measurement; see `measure`."""

    session: aiohttp.ClientSession
    target: Target
    metrics: str
    samples: Sequence[Sample]
    seconds: float
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
        """A request of the first documents of a sample."""
        part = replace(sample, documents=sample.documents[:documents], tokens=None)
        before = await self.counted()
        outcome = await request(self.session, self.target, part, _body(self.target, part))
        _check([outcome])
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
        self.progress(f"{whole} requests one at a time: {1000 * took:.1f} ms")
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


def fitted(alone: Sequence[Alone], closed: Sequence[tuple[Level, Work]], replicas: int, most: int) -> Replica:
    """What a replica does, by requests one at a time and by more and more of them at a time.

    Where two requests for each replica are in flight, all compute and requests wait, and a batch has about as many
    tokens as a request alone: so it shows how much longer batches take then.
    """
    parts: dict[float, Work] = {}
    for one in alone:
        parts[one.part] = parts.get(one.part, Work(0, 0, 0)) + one.work
    near = fit([*parts.values()], most)
    crowds = [level.clients is not None and level.clients >= 2 * replicas for level, _ in closed]
    crowd = next((work for (_, work), is_one in zip(closed, crowds, strict=True) if is_one), closed[-1][1])
    crowded = crowding(near, [one.work for one in alone], [crowd])
    best = max(level.answered for level, _ in closed)
    works = [*parts.values()]
    for (level, work), is_one in zip(closed, crowds, strict=True):
        # Replicas that never wait take all the time there is, and not only the time of their batches.
        took = work.seconds / level.busy if level.answered >= FULL * best else work.seconds
        works.append(replace(work, seconds=took / crowded if is_one else took))
    outside = median([one.outside(replicas) for one in alone if one.part == 1])
    found = replace(fit(works, most), outside=outside, crowded=crowded)
    return replace(found, trace=trace(found, alone, replicas))


def crowding(replica: Replica, alone: Sequence[Work], crowd: Sequence[Work]) -> float:
    """How many times as long batches took in a crowd as alone, for what the replica's figures say of them."""

    def times(works: Sequence[Work]) -> float:
        return sum(one.seconds for one in works) / sum(_said(replica, one) for one in works)

    return max(times(crowd) / times(alone), 1.0)


def trace(replica: Replica, alone: Sequence[Alone], replicas: int) -> list[tuple[float, float]]:
    """The seconds that requests alone took one after the other, each with the seconds by the replica's figures.

    Figures that are too low or high for requests of one size are corrected, to say of all sizes what they say of whole
    requests: what is left is how the machine's speed varied.
    """
    said = [_said(replica, one.work) + replica.outside for one in alone]
    rows = [(one.part, one.work.seconds + one.outside(replicas), says) for one, says in zip(alone, said, strict=True)]
    slower = {
        part: sum(took for size, took, _ in rows if size == part) / sum(says for size, _, says in rows if size == part)
        for part in {size for size, _, _ in rows}
    }
    return [(round(took, 6), round(says * slower[part] / slower[1.0], 6)) for part, took, says in rows]


def _said(replica: Replica, work: Work) -> float:
    return replica.fixed * work.batches + replica.per_token * work.tokens


def fit(observed: Sequence[Work], most: int) -> Replica:
    """The seconds of a batch and of a token that come closest to what was observed, by the least relative squares."""
    rows = [(one.batches / one.seconds, one.tokens / one.seconds) for one in observed if one.seconds > 0]
    batches, tokens = sum(b * b for b, _ in rows), sum(t * t for _, t in rows)
    both, of_batches, of_tokens = sum(b * t for b, t in rows), sum(b for b, _ in rows), sum(t for _, t in rows)
    if (apart := batches * tokens - both * both) > 1e-9 * batches * tokens:
        fixed = (of_batches * tokens - of_tokens * both) / apart
        per_token = (of_tokens * batches - of_batches * both) / apart
        if fixed >= 0 and per_token > 0:
            return Replica(fixed, per_token, most)
    # All batches are alike, or a time would be below 0: tokens take all of it.
    return Replica(0.0, of_tokens / tokens, most)


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
        raise RerankdError(f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}")


def _body(target: Target, sample: Sample) -> bytes:
    return json.dumps(target.api.body(target.model, sample)).encode()
