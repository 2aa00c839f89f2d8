"""A server of replicas of which one is killed now and then, under the load of many clients: nothing is lost.

usage: python -m benchmarks.kills MODEL [--replicas 2] [--clients 200] [--every 10] [--seconds 60]

Clients without a pause send requests of 1 to 50 documents and compare each score with the one that the engine gives
offline. Every so many seconds one replica's process gets SIGKILL, each in its turn. The command ends with 1 unless

- every answer has the offline scores, and a client that gets 503 with Retry-After, and no other refusal, is answered
  when it sends the request again;
- all requests that were sent are answered, as all clients wait for their last answer;
- the server starts a process in the place of each that was killed, counts it, and is healthy at the end;
- the server ends by a signal with 0, and leaves no process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp

from benchmarks import program
from benchmarks.memory import family
from benchmarks.soak import DOCUMENTS, QUERIES, TOLERANCE, Corpus
from rerankd.bench.started import Started, started

MOST_DOCUMENTS = 50
TRIES = 20
"""A request that is refused so often is lost."""
FLAGS = ("--dtype", "float32", "--disable-uvicorn-access-log")
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_START = 120


def is_alive(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process started and that have not ended."""
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [pid for pid in found if is_alive(pid)]


def replicas(server: int) -> list[int]:
    """The processes of a server's replicas: on a CPU those that the process forked which loaded the model."""
    started = children(server)
    return [forked for one in started for forked in children(one)] or started


@dataclass
class Kills:
    """The clients, what they saw, and the processes that were killed.

    sent: requests, each counted once however often it was sent again
    scored: those that were answered with the offline scores
    answered: is set at each answer
    statuses: of all answers, with those that were sent again
    outages: seconds from each kill until as many replicas as before take batches
    """

    url: str
    server: int
    corpus: Corpus
    sent: int = 0
    scored: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    outages: list[float] = field(default_factory=list)
    longest: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        """Send until the end, and wait for the last answer."""
        random = Random(number)
        while not self.over.is_set():
            self.sent += 1
            began = time.monotonic()
            try:
                await self.scores(session, random)
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError) as error:
                self.wrong.append(f"no answer: {error!r}")
            self.longest = max(self.longest, time.monotonic() - began)

    async def scores(self, session: aiohttp.ClientSession, random: Random) -> None:
        """One request, sent again when it gets 503."""
        corpus = self.corpus
        query = random.randrange(len(corpus.queries))
        most = min(MOST_DOCUMENTS, len(corpus.documents))
        places = random.sample(range(len(corpus.documents)), random.randint(1, most))
        body = {"query": corpus.queries[query], "documents": [corpus.documents[place] for place in places]}
        for _ in range(TRIES):
            async with session.post(f"{self.url}/v1/rerank", json={**body, "return_documents": False}) as answer:
                said = await answer.json()
            self.statuses[answer.status] += 1
            if answer.status != 503:
                break
            if "Retry-After" not in answer.headers:
                self.wrong.append(f"503 without Retry-After: {said}")
            await asyncio.sleep(min(int(answer.headers.get("Retry-After", 1)), 2))
        if answer.status != 200:
            self.wrong.append(f"{answer.status} for {len(places)} documents: {said}")
            return
        found = {one["index"]: one["relevance_score"] for one in said["results"]}
        wanted = {index: corpus.scores[query][place] for index, place in enumerate(places)}
        off = [index for index, score in wanted.items() if abs(found.get(index, float("inf")) - score) > TOLERANCE]
        if off or len(said["results"]) != len(places):
            self.wrong.append(f"{len(off)} of {len(places)} scores are wrong: {said['results'][:3]}")
        else:
            self.scored += 1

    async def kill(self, session: aiohttp.ClientSession) -> None:
        """Kill the replica that has run for the longest time, and wait until a process has taken its place."""
        before = replicas(self.server)
        wanted, restarts = await self.counted(session)
        victim = before[0]
        os.kill(victim, signal.SIGKILL)
        self.killed.append(victim)
        began = time.monotonic()
        while await self.counted(session) != (wanted, restarts + 1):
            if time.monotonic() - began > SECONDS_TO_START:
                self.wrong.append(f"no process took the place of {victim} in {SECONDS_TO_START} seconds")
                return
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self.outages.append(time.monotonic() - began)

    async def counted(self, session: aiohttp.ClientSession) -> tuple[int, int]:
        """How many replicas take batches, and how often a process was started again, by the server's own count."""
        async with session.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        return (
            sum(float(value) == 1 for value in re.findall(r"^rerankd_replica_up\{.*\} (\S+)", text, re.MULTILINE)),
            sum(int(float(n)) for n in re.findall(r"^rerankd_replica_restarts_total\{.*\} (\S+)", text, re.MULTILINE)),
        )

    async def check(self, session: aiohttp.ClientSession, count: int) -> None:
        """What holds when all clients are done."""
        if self.sent != self.scored and not self.wrong:
            self.wrong.append(f"{self.sent - self.scored} requests of {self.sent} are lost")
        if (found := await self.counted(session)) != (count, len(self.killed)):
            self.wrong.append(
                f"{found[0]} of {count} replicas run after {found[1]} starts for {len(self.killed)} kills"
            )
        if len(replicas(self.server)) != count or set(replicas(self.server)) & set(self.killed):
            self.wrong.append(f"the processes are {replicas(self.server)}, those that were killed {self.killed}")
        async with session.get(f"{self.url}/health") as answer:
            if answer.status != 200:
                self.wrong.append(f"/health: {answer.status}")

    def __str__(self) -> str:
        outages = ", ".join(f"{seconds:.1f}" for seconds in self.outages)
        return "\n".join(
            [
                f"requests sent: {self.sent}; answered with the offline scores: {self.scored}",
                f"answers by status: {dict(sorted(self.statuses.items()))}; sent again after 503: {self.statuses[503]}",
                f"the longest from the first sending to the answer: {self.longest:.1f} s",
                f"processes killed: {len(self.killed)}; seconds until another took its place: {outages}",
                *(f"FAILED: {one}" for one in self.wrong[:10]),
                *([f"FAILED: {len(self.wrong) - 10} more"] if len(self.wrong) > 10 else []),
            ]
        )


async def killed(server: Started, corpus: Corpus, given: argparse.Namespace) -> Kills:
    """The load, with a kill every so many seconds."""
    kills = Kills(server.url, server.process.pid, corpus)
    no_limit = aiohttp.ClientTimeout(300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=no_limit) as session:
        clients = [asyncio.create_task(kills.client(session, number)) for number in range(given.clients)]
        end = time.monotonic() + given.seconds
        for number in range(int(given.seconds // given.every)):
            due = end - given.seconds + (number + 0.5) * given.every
            await asyncio.sleep(max(due - time.monotonic(), 0))
            await kills.kill(session)
        await asyncio.sleep(max(end - time.monotonic(), 0))
        kills.over.set()
        await asyncio.gather(*clients)
        await kills.check(session, given.replicas)
    return kills


def main() -> None:
    """See the module."""
    parser = program.parser("kills", __doc__)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one kill to the next")
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    corpus = Corpus(given.model, QUERIES, DOCUMENTS)
    with started(given.model, "--data-parallel-size", str(given.replicas), *FLAGS) as server:
        processes = list(family(server.process.pid))
        kills = asyncio.run(killed(server, corpus, given))
        processes += family(server.process.pid)
    if code := server.process.returncode:
        kills.wrong.append(f"the server ended with {code}")
    if left := [pid for pid in processes if is_alive(pid)]:
        kills.wrong.append(f"processes are left: {left}")
    print(kills)
    sys.exit(1 if kills.wrong else 0)


if __name__ == "__main__":
    program.run(main)
