"""Replicas that are killed under load, over HTTP: `python -m benchmarks.kills` is the same for as long as one wants."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from benchmarks.kills import Kills, is_alive, replicas
from benchmarks.memory import family
from benchmarks.soak import Corpus

from rerankd.bench.started import started

CLIENTS, KILLS, ANSWERS = 30, 2, 60


async def test_clients_of_replicas_that_are_killed_get_all_their_answers(bert_checkpoint: Path) -> None:
    corpus = Corpus(str(bert_checkpoint), 3, 60)
    spread = {round(score, 5) for scores in corpus.scores for score in scores}
    assert len(spread) > 100, "wrong scores would not show"
    with started(str(bert_checkpoint), "--device", "cpu", "--dtype", "float32", "-dp", "2") as server:
        kills = Kills(server.url, server.process.pid, corpus)
        processes = set(family(server.process.pid))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            clients = [asyncio.create_task(kills.client(session, number)) for number in range(CLIENTS)]
            for number in range(KILLS):
                while kills.scored < (number + 1) * ANSWERS and not kills.wrong:
                    await asyncio.sleep(0.01)
                await kills.kill(session)
                processes |= set(replicas(server.process.pid))
            kills.over.set()
            await asyncio.gather(*clients)
            await kills.check(session, 2)
    assert not kills.wrong
    assert len(set(kills.killed)) == KILLS
    assert kills.sent == kills.scored >= KILLS * ANSWERS
    # A request that one process died of is answered by another, unless that one is killed with it too.
    assert set(kills.statuses) <= {200, 503}
    assert kills.statuses[503] <= CLIENTS
    assert server.process.returncode == 0
    assert not [pid for pid in processes if is_alive(pid)]
