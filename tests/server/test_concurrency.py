"""Many clients at once, with the real engine: each gets exactly its own documents' scores."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import requests

from rerankd import Reranker, work
from rerankd.core import EngineClosed, PackedBatch
from rerankd.prompts.tokenizer import LoadedTokenizer
from rerankd.server.settings import Settings
from tests.server.fakes import running
from tests.server.test_clients_that_leave import open_call, until
from tests.texts import SENTENCES, WORDS

CLIENTS = 50


def bodies() -> list[dict[str, object]]:
    random = Random(0)

    def text(most: int) -> str:
        return " ".join(random.choices((*WORDS, *SENTENCES), k=random.randint(1, most)))

    return [
        {"query": text(12), "documents": [text(60) for _ in range(random.randint(1, 12))], "instruction": text(8)}
        for _ in range(CLIENTS)
    ]


@pytest.mark.parametrize("fixture", ["qwen3_checkpoint", "bert_checkpoint"])
def test_each_client_gets_its_own_scores(fixture: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    sent = bodies()

    def call(url: str, body: dict[str, object]) -> dict[int, float]:
        response = requests.post(f"{url}/v1/rerank", json=body, timeout=120)
        assert response.status_code == 200, response.text
        results = response.json()["results"]
        documents = body["documents"]
        assert isinstance(documents, list)
        assert all(one["document"]["text"] == documents[one["index"]] for one in results)
        return {one["index"]: one["relevance_score"] for one in results}

    # A small budget, so that requests are split and share batches.
    with (
        Reranker(str(folder), dtype="float32", max_batch_tokens=512) as reranker,
        running(reranker, Settings(names=("model",))) as url,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        alone = [call(url, body) for body in sent]
        together = list(pool.map(lambda body: call(url, body), sent))
    assert len({score for scores in alone for score in scores.values()}) > CLIENTS
    for one, other in zip(alone, together, strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_a_client_that_hangs_up_frees_the_engine(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a request of many batches, only the running one is computed once its client has gone."""
    with Reranker(str(bert_checkpoint), dtype="float32", max_batch_tokens=64) as reranker:
        model, batches, go = reranker._engine.model, [0], threading.Event()

        def gated(batch: PackedBatch) -> Any:
            batches[0] += 1
            assert go.wait(60)
            return model(batch)

        vars(gated)["shares_prefix"] = model.shares_prefix
        monkeypatch.setattr(reranker._engine, "model", gated)
        with running(reranker, Settings(names=("model",))) as url:
            connection = open_call(url, {"query": "many", "documents": ["of words " * 20] * 50})
            until(lambda: batches[0] == 1)
            connection.close()
            time.sleep(0.5)
            go.set()
            answer = requests.post(f"{url}/v1/rerank", json={"query": "one", "documents": ["a"]}, timeout=60)
            assert answer.status_code == 200
    assert batches[0] == 2


async def test_closing_ends_what_is_tokenised(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def endless(self: LoadedTokenizer, texts: Sequence[str]) -> list[list[int]]:
        began.set()
        while True:
            work.check()
            time.sleep(0.01)

    with Reranker(str(bert_checkpoint), dtype="float32") as reranker:
        monkeypatch.setattr(LoadedTokenizer, "ids", endless)
        answer = asyncio.ensure_future(reranker.arerank("a", ["b"]))
        assert await asyncio.to_thread(began.wait, 30)
        reranker.close()
        with pytest.raises(EngineClosed):
            await asyncio.wait_for(answer, 60)


def test_a_short_request_waits_for_two_batches_at_most(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running batch, and its own: whatever else waits."""
    long = {"query": "many", "documents": ["of words " * 20] * 20}
    with Reranker(str(bert_checkpoint), dtype="float32", max_batch_tokens=256) as reranker:
        model, batches = reranker._engine.model, threading.Semaphore(0)

        def gated(batch: PackedBatch) -> Any:
            assert batches.acquire(timeout=60)
            return model(batch)

        vars(gated)["shares_prefix"] = model.shares_prefix
        monkeypatch.setattr(reranker._engine, "model", gated)
        with running(reranker, Settings(names=("model",))) as url, ThreadPoolExecutor(21) as pool:
            calls = [pool.submit(requests.post, f"{url}/v1/rerank", json=long, timeout=120) for _ in range(20)]
            until(lambda: reranker.load().waiting > 380)
            waiting = reranker.load().waiting
            short = pool.submit(
                requests.post, f"{url}/v1/rerank", json={"query": "one", "documents": ["a"]}, timeout=60
            )
            until(lambda: reranker.load().waiting == waiting + 1)
            batches.release(2)
            assert short.result(60).status_code == 200
            assert not any(call.done() for call in calls)
            batches.release(1000)
            assert {call.result().status_code for call in calls} == {200}
