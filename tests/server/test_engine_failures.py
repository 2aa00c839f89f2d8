"""An engine that fails, behind a server on real sockets: whose request it is, what they are told, and who else is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from torch import Tensor

from rerankd import Reranker
from rerankd.core import EngineDead, PackedBatch, ReplicaLost
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running
from tests.server.launched import launched
from tests.server.test_clients_that_leave import until

QUICK = {"query": "quick", "documents": ["a"]}
BAD = {"query": "bad", "documents": ["a", "word " * 50, "b"]}
OTHERS = [{"query": f"query {number}", "documents": ["a b", f"document {number}"]} for number in range(6)]


class Faulty:
    """A model that does as `fault` says with a batch that holds a long document; else it scores."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.shares_prefix = model.shares_prefix
        self.fault: Callable[[Tensor, int], Tensor] = lambda logits, place: logits
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []

    def __call__(self, batch: PackedBatch) -> Tensor:
        assert self.gate.wait(60)
        documents = batch.documents()
        self.sizes.append(len(documents))
        logits: Tensor = self.model(batch)
        long = [place for place, span in enumerate(documents) if len(span) > 40]
        return self.fault(logits, long[0]) if long else logits


@pytest.fixture(scope="module")
def server(bert_checkpoint: Path) -> Iterator[tuple[str, Reranker, Faulty]]:
    with Reranker(str(bert_checkpoint), dtype="float32") as reranker:
        faulty = Faulty(reranker._engine.model)
        reranker._engine.model = faulty  # type: ignore[assignment]
        with running(reranker, Settings(names=("model",))) as url:
            yield url, reranker, faulty


def together(server: tuple[str, Reranker, Faulty], path: str) -> tuple[requests.Response, list[Any]]:
    """The answers to a bad request, and to those that share its batch."""
    url, reranker, faulty = server

    def call(body: dict[str, Any], path: str = "/v1/rerank") -> requests.Response:
        return requests.post(url + path, json=body, timeout=120)

    alone = [call(body).json()["results"] for body in OTHERS]
    faulty.gate.clear()
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(call, QUICK)
        until(lambda: reranker.load().waiting == 0 and not first.done() and len(reranker._engine._computing) == 1)
        bad = pool.submit(call, BAD if path != "/tei/rerank" else {"query": "bad", "texts": BAD["documents"]}, path)
        others = [pool.submit(call, body) for body in OTHERS]
        until(lambda: reranker.load().waiting == 3 + 2 * len(OTHERS))
        faulty.sizes.clear()
        faulty.gate.set()
        answers = [other.result() for other in others]
    assert [answer.status_code for answer in answers] == [200] * len(OTHERS)
    for answer, own in zip(answers, alone, strict=True):
        assert [one["index"] for one in answer.json()["results"]] == [one["index"] for one in own]
        for one, other in zip(answer.json()["results"], own, strict=True):
            assert one["relevance_score"] == pytest.approx(other["relevance_score"], abs=1e-5)
    assert max(faulty.sizes) == 3 + 2 * len(OTHERS)
    return bad.result(), faulty.sizes


def raising(error: Callable[[], Exception]) -> Callable[[Tensor, int], Tensor]:
    def fault(logits: Tensor, place: int) -> Tensor:
        raise error()

    return fault


def not_a_number(logits: Tensor, place: int) -> Tensor:
    logits[place] = float("nan")
    return logits


@pytest.mark.parametrize("path", ["/v1/rerank", "/cohere/v2/rerank", "/tei/rerank"])
def test_who_makes_the_model_raise_is_told_an_id_and_the_others_their_scores(
    server: tuple[str, Reranker, Faulty], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    server[2].fault = raising(lambda: RuntimeError("a secret of the model"))
    answer, _ = together(server, path)
    assert answer.status_code == (424 if path == "/tei/rerank" else 500)
    assert "secret" not in answer.text
    assert answer.headers["X-Request-Id"] in answer.text
    (said,) = [record for record in caplog.records if answer.headers["X-Request-Id"] in record.getMessage()]
    assert said.exc_text is not None
    assert "a secret of the model" in said.exc_text


def test_a_logit_that_is_no_number_fails_its_own_request(server: tuple[str, Reranker, Faulty]) -> None:
    server[2].fault = not_a_number
    answer, _ = together(server, "/v1/rerank")
    assert answer.status_code == 500


def test_a_document_that_does_not_fit_into_memory_is_told_so(server: tuple[str, Reranker, Faulty]) -> None:
    server[2].fault = raising(lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    answer, sizes = together(server, "/v1/rerank")
    assert answer.status_code == 500
    assert "does not fit into the memory" in answer.json()["error"]["message"]
    assert 1 in sizes
    assert requests.get(f"{server[0]}/health", timeout=30).status_code == 200


PATHS = {
    "/v1/rerank": {"error": {"message": ..., "type": "ServiceUnavailableError", "param": None, "code": 503}},
    "/cohere/v2/rerank": {"message": ...},
    "/tei/rerank": {"error": ..., "error_type": "Unhealthy"},
    "/jina/v1/rerank": {"detail": ...},
}


def without_message(body: Any) -> Any:
    """A body with `...` for its sentence."""
    if isinstance(body, dict):
        return {name: without_message(value) for name, value in body.items()}
    return ... if isinstance(body, str) and body.startswith("The engine has failed") else body


def test_a_dead_engine_is_told_to_probes_and_to_each_api_in_its_words() -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,))) as url:
        for path in ("/health", "/ready", "/ping"):
            assert requests.get(url + path, timeout=30).status_code == 200
        fake.failure = EngineDead("its thread is gone")
        for path in ("/health", "/ready", "/ping"):
            assert requests.get(url + path, timeout=30).status_code == 503
            assert requests.head(url + path, timeout=30).status_code == 503
        for path, shape in PATHS.items():
            answer = requests.post(url + path, json={**QUICK, "texts": ["a"]}, timeout=30)
            assert answer.status_code == 503
            assert without_message(answer.json()) == shape
            assert int(answer.headers["Retry-After"]) > 0


def test_a_request_whose_replicas_ended_is_told_so_in_each_apis_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeReranker()

    async def lose(request: Any) -> Any:
        raise ReplicaLost("The engine has failed twice.")

    monkeypatch.setattr(fake, "answer", lose)
    with running(fake, Settings(names=(MODEL,))) as url:
        for path, shape in PATHS.items():
            answer = requests.post(url + path, json={**QUICK, "texts": ["a"]}, timeout=30)
            assert answer.status_code == 503
            assert without_message(answer.json()) == shape
            assert int(answer.headers["Retry-After"]) > 0


FAULTY = """
import sys, time
from rerankd.cli.main import main
from rerankd.engine.engine import Engine

logits = Engine._logits

def faulty(self, groups):
    if any(len(group.suffixes) == 3 for group in groups) or vars(self).get("broken"):
        {fault}
    return logits(self, groups)

Engine._logits = faulty
sys.argv[0] = "rerankd"
main()
"""
FAULTS = {
    "its thread ends": "raise SystemExit",
    "all its batches fail": "self.broken = True; raise RuntimeError('device-side assert')",
    "a batch hangs": """
        with self._watchdog.watching(1):
            time.sleep(3600)""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_whose_engine_fails_answers_503_and_exits_with_1(bert_checkpoint: Path, fault: str) -> None:
    program = ("-c", FAULTY.format(fault=FAULTS[fault]), "serve")
    flags = ("--disable-uvicorn-access-log", "--engine-timeout", "1", "--log-level", "critical")
    with launched(program, str(bert_checkpoint), *flags, exit_code=1) as server, ThreadPoolExecutor(20) as pool:

        def call(documents: int) -> requests.Response:
            body = {"query": "a", "documents": ["b"] * documents}
            return requests.post(f"{server.url}/v1/rerank", json=body, timeout=60)

        assert call(1).status_code == 200
        bad = pool.submit(call, 3)
        waiting = [pool.submit(call, 2) for _ in range(10)]
        assert bad.result().status_code == 503
        for one in waiting:
            with suppress(requests.ConnectionError):  # it may come when the server has gone
                assert one.result().status_code in (200, 503)
        assert server.process.wait(30) == 1
