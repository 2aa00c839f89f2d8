"""The load generator: sends samples at a rate, under a limit on requests in flight, and times each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rerankd.bench.apis import Api, BadAnswer, read_answer
from rerankd.bench.samples import Sample
from rerankd.core import RerankdError

if TYPE_CHECKING:
    import aiohttp

RETRY_SECONDS = 1.0
"""Between two tries to reach a server that is not up yet."""
CONNECT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    api: Api
    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    verify_tls: bool = True


@dataclass(frozen=True, slots=True)
class Traffic:
    """When requests go.

    rate: requests a second; infinity for all at once
    burstiness: shape of the gamma distribution of the intervals: 1 is a Poisson process, less is burstier
    concurrency: requests in flight at most, or None
    """

    rate: float = float("inf")
    burstiness: float = 1.0
    concurrency: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise RerankdError(f"--request-rate: {self.rate} is not above 0; leave it out to send all at once.")
        if not self.burstiness > 0:
            raise RerankdError(f"--burstiness: {self.burstiness} is not above 0.")
        if self.concurrency is not None and self.concurrency < 1:
            raise RerankdError(f"--max-concurrency: {self.concurrency} is below 1; leave it out for no limit.")

    def departures(self, count: int) -> list[float]:
        """Seconds from the start at which each request is due, rising; the last is due at count / rate."""
        if self.rate == float("inf"):
            return [0.0] * count
        import numpy

        if self.burstiness == float("inf"):
            intervals = numpy.ones(count)
        else:
            intervals = numpy.random.default_rng(self.seed).gamma(self.burstiness, size=count)
        times = numpy.cumsum(intervals)
        # Scaled to the rate asked for, so that a seed's luck does not move the throughput.
        return [float(second) for second in times * (count / self.rate / times[-1])]


@dataclass(slots=True)
class Outcome:
    """The outcome of a request. All times are in seconds.

    latency: seconds from sending to the end of the answer; 0 for a failed request
    queue_time: waited here for its turn under the limit on requests in flight
    tokens: input tokens, by the server's count or, where it has none, by ours; None where neither is known
    received: bytes of the answer's body
    status: the HTTP status, or 0 where no answer came
    error: why it failed, or ""
    """

    sample: Sample
    latency: float = 0.0
    queue_time: float = 0.0
    tokens: int | None = None
    counted_by_server: bool = False
    received: int = 0
    status: int = 0
    error: str = ""


async def run(
    target: Target,
    samples: Sequence[Sample],
    traffic: Traffic,
    *,
    warmups: int = 0,
    ready_seconds: float = 0,
    progress: Callable[[], object] = lambda: None,
) -> tuple[list[Outcome], float]:
    """Send every sample; the outcomes in their order, and the seconds from the first to the last.

    Before that, one request is tried: for up to `ready_seconds` where no server listens yet. Then `warmups`
    requests go out, which count for nothing. `progress` is called after each request of the run itself.

    Raises RerankdError where the first request fails.
    """
    bodies = {id(sample): json.dumps(target.api.body(target.model, sample)).encode() for sample in samples}
    async with connect(target.headers, target.verify_tls) as session:

        async def send(sample: Sample) -> Outcome:
            return await request(session, target, sample, bodies[id(sample)])

        await first_request(send, samples[0], ready_seconds, target.url)
        turns = asyncio.Semaphore(traffic.concurrency) if traffic.concurrency else contextlib.nullcontext()

        async def in_turn(sample: Sample) -> Outcome:
            queued_at = time.perf_counter()
            async with turns:
                queue_time = time.perf_counter() - queued_at
                outcome = await send(sample)
            outcome.queue_time = queue_time
            return outcome

        await asyncio.gather(*(in_turn(samples[i % len(samples)]) for i in range(warmups)))

        async def measured(sample: Sample) -> Outcome:
            outcome = await in_turn(sample)
            progress()
            return outcome

        start = time.perf_counter()
        tasks = []
        for sample, departure in zip(samples, traffic.departures(len(samples)), strict=True):
            if (wait := start + departure - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(measured(sample)))
        outcomes = await asyncio.gather(*tasks)
        return outcomes, time.perf_counter() - start


def require_aiohttp() -> None:
    """Raises RerankdError without the package with which requests are sent.

    It does an order of magnitude less work a request than httpx, which the rest of the project uses: on a small
    machine the generator would take the cores that it is there to measure.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise RerankdError("Benchmarks need extra packages: pip install 'rerankd[bench]'.") from None


async def served_models(base_url: str, headers: Mapping[str, str], *, verify_tls: bool) -> dict[str, str]:
    """The ids of a server's `/v1/models`, in its order, each with the `root` that it was loaded from (else the id).

    Raises RerankdError where there is none, and for a server that cannot be reached.
    """
    require_aiohttp()
    import aiohttp

    url = f"{base_url}/v1/models"
    try:
        async with connect(headers, verify_tls) as session, session.get(url) as response:
            models = (await response.json(content_type=None))["data"]
            served = {str(model["id"]): str(model.get("root") or model["id"]) for model in models}
    except (aiohttp.ClientConnectionError, OSError) as error:
        raise RerankdError(f"{base_url} cannot be reached: {error}.") from error
    except (aiohttp.ClientError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RerankdError(f"--model: not given, and {url} lists none ({error}).") from error
    if not served:
        raise RerankdError(f"--model: not given, and {url} lists none.")
    return served


@contextlib.asynccontextmanager
async def connect(headers: Mapping[str, str], verify_tls: bool) -> AsyncIterator[aiohttp.ClientSession]:
    require_aiohttp()
    import aiohttp

    all_headers = {"Content-Type": "application/json", **headers}
    if "authorization" not in {name.lower() for name in all_headers} and (key := os.environ.get("OPENAI_API_KEY")):
        all_headers["Authorization"] = f"Bearer {key}"
    connector = aiohttp.TCPConnector(limit=0, ssl=verify_tls)
    no_limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector, headers=all_headers, timeout=no_limit, trust_env=_has_proxy_or_netrc()
    ) as session:
        yield session


def _has_proxy_or_netrc() -> bool:
    """Whether the environment says anything of connections.

    aiohttp asks it anew for each request, in threads: this takes more time than the rest of the request.
    """
    netrc = [os.environ.get("NETRC"), *(os.path.expanduser(name) for name in ("~/.netrc", "~/_netrc"))]
    return bool(urllib.request.getproxies()) or any(path and os.path.exists(path) for path in netrc)


async def request(session: aiohttp.ClientSession, target: Target, sample: Sample, body: bytes) -> Outcome:
    """Send one request; never raises for what the network or the server does."""
    import aiohttp

    outcome = Outcome(sample)
    start = time.perf_counter()
    try:
        async with session.post(target.url, data=body) as response:
            content = await response.read()
            latency = time.perf_counter() - start
            outcome.status, outcome.received = response.status, len(content)
            if response.status != 200:
                outcome.error = f"HTTP {response.status}: {error_message(content) or response.reason}"
                return outcome
            tokens = read_answer(target.api, sample, json.loads(content), response.headers)
    except BadAnswer as error:
        outcome.error = str(error)
    except asyncio.TimeoutError:
        outcome.error = f"no connection within {CONNECT_SECONDS} seconds"
    except (aiohttp.ClientError, OSError) as error:
        outcome.error = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    except ValueError:
        outcome.error = "the answer is not JSON"
    else:
        outcome.latency = latency
        outcome.counted_by_server = tokens is not None
        outcome.tokens = tokens if tokens is not None else sample.tokens
    return outcome


def error_message(content: bytes) -> str:
    """The message of an error body, whichever of the known shapes it has; one line of at most 200 characters."""
    message: Any = content.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        message = json.loads(message)
    while isinstance(message, dict):
        message = next((message[key] for key in ("error", "message", "detail") if key in message), str(message))
    return " ".join(str(message).split())[:200]


async def first_request(send: Callable[[Sample], Any], sample: Sample, ready_seconds: float, url: str) -> None:
    """Wait until a server listens, and see that it answers this kind of request."""
    deadline = time.perf_counter() + ready_seconds
    while (outcome := await send(sample)).error:
        if outcome.status not in (0, 503) or time.perf_counter() + RETRY_SECONDS > deadline:
            raise RerankdError(f"{url}: the first request failed. {outcome.error}")
        await asyncio.sleep(RETRY_SECONDS)
