"""`python -m benchmarks.soak MODEL [--seconds 600]`: a server under far more load than it can bear, and under attack.

200 clients without a pause send requests of 1 to 500 documents. Some leave before their answer, some send nonsense,
some send what would cost too much. It is held to this, and the command ends with 1 where anything of it fails:

- every answer has the scores that the engine gives offline, or it is a refusal of the kind that was to be expected;
- `/health` and one-document requests are answered meanwhile, 99 % of the latter within the time of two batches: the one
  that runs when a request arrives, and its own. Batches differ, and so it is twice the 99th percentile of a batch;
- memory hardly grows after the first part;
- before, when each of these inputs and three larger ones come alone, the event loop never computes for 50 ms. Under
  load it may, in many short steps;
- at the end a quiet request takes as long as before the load, and a signal ends the server with 0.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import aiohttp

from benchmarks import program
from rerankd import Reranker

QUERIES, DOCUMENTS = 8, 600
LEAVE, MALFORMED, HOSTILE, ONE_DOCUMENT = 0.05, 0.02, 0.01, 0.1
TOLERANCE = 1e-4
STAGES = ("tokenise", "queue", "model")
QUIET_REQUESTS = 60
SLOWER = 1.5
"""So many times as long a quiet request may take afterwards: the machine's own speed varies."""
GROWTH = 50 << 20
"""Bytes that memory may grow by after the first part."""
FIRST_PART = 60.0
FLAGS = ("--max-queued-tokens", "200k", "--disable-uvicorn-access-log", "--log-level", "error")
JSON = {"Content-Type": "application/json"}
WORDS = (
    "the",
    "giant",
    "panda",
    "is",
    "a",
    "bear",
    "native",
    "to",
    "south",
    "central",
    "china",
    "it",
    "eats",
    "bamboo",
)
NONSENSE = (
    b"{",
    b"[1]",
    b'{"query": 1, "documents": ["a"]}',
    b'{"query": "a"}',
    b"\xff\xfe",
    b'{"query": "a", "documents": []}',
)
CHUNKS_OF_ONE_TOKEN = {"max_tokens_per_doc": 1, "overlap_tokens": 0}
HOSTILE_BODIES: tuple[tuple[str, bytes], ...] = (
    ("/v1/rerank", b'{"query": "a", "documents": [' + b",".join([b"1"] * 500_000) + b"]}"),
    ("/v1/rerank", json.dumps({"query": "a", "documents": ["x" * 3_000_000]}).encode()),
    ("/v1/rerank", json.dumps({"query": "a", "documents": [""] * 20_000}).encode()),
    (
        "/v1/rerank",
        json.dumps({"query": "a", "documents": ["b " * 30_000], "max_tokens_per_doc": 1, "overlap_tokens": 0}).encode(),
    ),
    ("/score", json.dumps({"text_1": ["q"] * 20_000, "text_2": ["d"] * 20_000}).encode()),
    ("/v1/rerank", b'{"query": "a", "documents": [' + b"[" * 50_000),
)
LARGER_BODIES: tuple[tuple[str, bytes], ...] = (
    (
        "/v1/rerank",
        json.dumps({"query": "a", "documents": [f"document {number}" for number in range(2_000_000)]}).encode(),
    ),
    ("/v1/rerank", json.dumps({"query": "a", "documents": [""] * 1_000_000}).encode()),
    ("/tokenize", json.dumps({"inputs": "a b " * 2_000_000}).encode()),
)


class Corpus:
    """Texts, and the score of each document for each query, as the engine gives it offline."""

    def __init__(self, model: str, queries: int = QUERIES, documents: int = DOCUMENTS) -> None:
        random = Random(0)

        def text(most: int) -> str:
            return " ".join(random.choices(WORDS, k=random.randint(1, most)))

        self.queries = [f"{text(12)} {number}" for number in range(queries)]
        self.documents = [f"{text(60)} {number}" for number in range(documents)]
        with Reranker(model, dtype="float32") as reranker:
            self.scores = [
                [one.score for one in reranker.rerank(query, self.documents).in_request_order()]
                for query in self.queries
            ]


class Single(NamedTuple):
    """Seconds of an answered request of one document: all, and those of its stages."""

    whole: float
    tokenise: float
    queue: float
    model: float


class Soak:
    """The clients, and what they saw."""

    def __init__(self, url: str, process: int, corpus: Corpus, until: float) -> None:
        self.url = url
        self.process = process
        self.corpus = corpus
        self.until = until
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.single: list[Single] = []
        self.health: list[float] = []
        self.memory: list[tuple[float, int]] = []

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        """Send until the end."""
        random = Random(number)
        while time.monotonic() < self.until:
            kind = random.random()
            try:
                if kind < LEAVE:
                    await self.leave(session, random)
                elif kind < LEAVE + MALFORMED:
                    await self.refused(session, "/v1/rerank", random.choice(NONSENSE), {400})
                elif kind < LEAVE + MALFORMED + HOSTILE:
                    await self.refused(session, *random.choice(HOSTILE_BODIES), {400, 413})
                else:
                    single = kind > 1 - ONE_DOCUMENT
                    await self.scored(session, random, 1 if single else int(500 ** random.random()))
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                self.wrong.append(f"no answer: {error!r}")

    async def scored(self, session: aiohttp.ClientSession, random: Random, count: int) -> None:
        """A request that is answered, with the right scores, or refused for the load."""
        query, places = random.randrange(QUERIES), random.sample(range(DOCUMENTS), count)
        body = {"query": self.corpus.queries[query], "documents": [self.corpus.documents[place] for place in places]}
        began = time.monotonic()
        async with session.post(f"{self.url}/v1/rerank", json={**body, "return_documents": False}) as answer:
            said = await answer.json()
        self.statuses[f"scored {answer.status}"] += 1
        if answer.status == 200:
            if count == 1:
                stages = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
                self.single.append(Single(time.monotonic() - began, *(float(stages[name]) / 1000 for name in STAGES)))
            for one in said["results"]:
                wanted = self.corpus.scores[query][places[one["index"]]]
                if abs(one["relevance_score"] - wanted) > TOLERANCE:
                    self.wrong.append(f"a score of {one['relevance_score']} in place of {wanted}")
        elif answer.status in (429, 504):
            await asyncio.sleep(min(int(answer.headers.get("Retry-After", 1)), 2))
        else:
            self.wrong.append(f"{answer.status} for {count} documents: {said}")

    async def leave(self, session: aiohttp.ClientSession, random: Random) -> None:
        """A request whose client goes."""
        try:
            await asyncio.wait_for(self.scored(session, random, 100), random.random())
        except asyncio.TimeoutError:
            self.statuses["left"] += 1

    async def refused(self, session: aiohttp.ClientSession, path: str, body: bytes, expected: set[int]) -> None:
        """A request that must be refused."""
        async with session.post(self.url + path, data=body, headers=JSON) as answer:
            said = await answer.text()
        self.statuses[f"refused {answer.status}"] += 1
        if answer.status not in expected | {429}:
            self.wrong.append(f"{answer.status} for {body[:60]!r}: {said[:300]}")

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Ask for health, and note the server's memory, until the end."""
        began = time.monotonic()
        while time.monotonic() < self.until:
            sent = time.monotonic()
            async with session.get(f"{self.url}/health") as answer:
                if answer.status != 200:
                    self.wrong.append(f"/health: {answer.status}")
            self.health.append(time.monotonic() - sent)
            status = Path(f"/proc/{self.process}/status").read_text()
            found = re.search(r"VmRSS:\s+(\d+) kB", status)
            assert found is not None
            self.memory.append((time.monotonic() - began, int(found[1]) << 10))
            await asyncio.sleep(0.5)


@contextmanager
def served(model: str, memory: float) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server under a limit of memory, which must end with 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve", model, "--port", "0", "--dtype", "float32", *FLAGS],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "is ready: " in line)
        limit = int(memory * (1 << 30))
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        yield line.split("is ready: ")[1].split()[0], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def quiet(session: aiohttp.ClientSession, url: str, corpus: Corpus) -> float:
    """The seconds of a request while nothing else is sent: the lower quartile, since other tenants slow some."""
    took = []
    for number in range(QUIET_REQUESTS):
        body = {"query": corpus.queries[0], "documents": corpus.documents[number : number + 10]}
        began = time.monotonic()
        async with session.post(f"{url}/v1/rerank", json=body) as answer:
            await answer.read()
        took.append(time.monotonic() - began)
    return sorted(took)[len(took) // 4]


async def counted(session: aiohttp.ClientSession, url: str) -> tuple[float, ...]:
    """Batches, their seconds together, looks at the event loop, those that found it at most 50 ms late, and those that
    found that its thread computed for at most 50 ms of that."""
    async with session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found: dict[str, str] = dict(re.findall(r"^rerankd_(\S+) (\S+)$", text, re.MULTILINE))
    delay, held = "event_loop_delay_seconds", "event_loop_held_seconds"
    soon = [f'{name}_bucket{{le="0.05"}}' for name in (delay, held)]
    names = ("batches_total", "batch_seconds_total", f"{delay}_count", *soon)
    return tuple(float(found[name]) for name in names)


async def soaked(url: str, process: int, corpus: Corpus, seconds: float, clients: int) -> bool:
    """Whether the server held."""
    soak = Soak(url, process, corpus, 0)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        await quiet(session, url, corpus)  # the first ones take longer
        before = await quiet(session, url, corpus)
        computed = await counted(session, url)
        for path, body in (*HOSTILE_BODIES, *LARGER_BODIES):
            await soak.refused(session, path, body, {400, 413})
        quiet_computed, computed = computed, await counted(session, url)
        soak.until = time.monotonic() + seconds
        await asyncio.gather(soak.watch(session), *(soak.client(session, number) for number in range(clients)))
        count, took, looks, soon, free = (
            now - then for now, then in zip(await counted(session, url), computed, strict=True)
        )
        after = await quiet(session, url, corpus)
    _, _, quiet_looks, _, quiet_free = (now - then for now, then in zip(computed, quiet_computed, strict=True))
    first = [held for at, held in soak.memory if at < min(FIRST_PART, seconds / 2)]
    last = [held for at, held in soak.memory if at >= seconds * 0.9]
    growth = max(last) - max(first)

    def part(values: list[float], share: float) -> float:
        return sorted(values)[min(int(len(values) * share), len(values) - 1)]

    whole, tokenise, queue, model = (
        [part(list(values), share) for share in (0.5, 0.99)] for values in zip(*soak.single, strict=True)
    )
    elsewhere = [one.whole - one.tokenise - one.queue - one.model for one in soak.single]
    minutes = range(int(seconds // 60) or 1)
    by_minute = [max((held >> 20 for at, held in soak.memory if at // 60 == one), default=0) for one in minutes]
    print(f"answers: {dict(sorted(soak.statuses.items()))}")
    print(f"{count:.0f} batches of {took / count:.2f} s")
    print(f"{len(soak.single)} requests of one document, median and p99 in seconds: {_two(whole)}")
    print(f"  until its batch {_two(queue)}; its batch {_two(model)}; tokenising {_two(tokenise)}")
    print(f"  elsewhere, the clients' own process included: {_two([part(elsewhere, share) for share in (0.5, 0.99)])}")
    print(f"/health: median {part(soak.health, 0.5) * 1000:.0f} ms, p99 {part(soak.health, 0.99) * 1000:.0f} ms")
    print(
        f"the event loop was over 50 ms late in {looks - soon:.0f} of {looks:.0f} looks; "
        f"its own thread computed that long in {looks - free:.0f}; "
        f"with hostile inputs that came alone, in {quiet_looks - quiet_free:.0f} of {quiet_looks:.0f}"
    )
    print(
        f"memory: at most {max(first) >> 20} MB in the first part, {max(last) >> 20} MB at the end; "
        f"by minute: {by_minute}"
    )
    print(f"a quiet request: {before * 1000:.0f} ms before, {after * 1000:.0f} ms after")
    failures = [f"{len(soak.wrong)} wrong answers, the first: {soak.wrong[0]}"] if soak.wrong else []
    failures += [f"memory grew by {growth >> 20} MB"] if growth > GROWTH else []
    if whole[1] > 2 * model[1]:
        failures.append(f"one document took {whole[1]:.2f} s at p99, two batches {2 * model[1]:.2f} s")
    if quiet_free < quiet_looks:
        failures.append(
            f"hostile inputs that came alone held the event loop for over 50 ms {quiet_looks - quiet_free:.0f} times"
        )
    if after > SLOWER * before:
        failures.append("a quiet request takes longer than before")
    for failure in failures:
        print(f"FAILED: {failure}")
    return not failures


def _two(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)


def main() -> None:
    """See the module."""
    parser = program.parser("soak", __doc__)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="data that the server's process may have")
    given = parser.parse_args()
    corpus = Corpus(given.model)
    with served(given.model, given.memory_gb) as (url, process):
        held = asyncio.run(soaked(url, process.pid, corpus, given.seconds, given.clients))
    print(f"the server ended with {process.returncode}")
    sys.exit(0 if held and process.returncode == 0 else 1)


if __name__ == "__main__":
    program.run(main)
