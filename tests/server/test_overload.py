"""A bound on the calls that are answered at a time: what is refused, how, and what is not."""

from __future__ import annotations

import http.client
import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from rerankd import Reranker
from rerankd.core import EngineLoad, PackedBatch
from rerankd.server import body
from rerankd.server.pool import Model, Pool
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running
from tests.server.launched import SERVE, launched
from tests.server.test_clients_that_leave import open_call, until

WAIT = {"query": "wait", "documents": ["a"]}
QUICK = {"query": "quick", "documents": ["a"]}


@pytest.fixture
def full() -> Iterator[tuple[str, FakeReranker]]:
    """A server that takes two calls at a time, and has them."""
    fake = FakeReranker()
    with (
        running(fake, Settings(names=(MODEL,), max_calls=2)) as url,
        ThreadPoolExecutor() as pool,
    ):
        calls = [pool.submit(requests.post, f"{url}/v1/rerank", json=WAIT, timeout=60) for _ in range(2)]
        until(lambda: len(fake.requests) == 2)
        try:
            yield url, fake
        finally:
            fake.gate.set()
            assert [call.result().status_code for call in calls] == [200, 200]


SHAPES = {
    "vllm": {"error": {"message": ..., "type": "Too Many Requests", "param": None, "code": 429}},
    "sglang": {"object": "error", "message": ..., "type": "Too Many Requests", "param": None, "code": 429},
    "cohere": {"message": ...},
    "tei": {"error": ..., "error_type": "Overloaded"},
    "infinity": {"error": {"message": ..., "type": "Too Many Requests", "param": None, "code": 429}},
    "voyage": {"detail": ...},
    "jina": {"detail": ...},
    "nvidia": {"object": "error", "message": ..., "detail": {}, "type": "invalid_request_error"},
    "weaviate": {"error": ...},
    "elastic": {"error": ...},
    "kserve": {"error": ...},
}


def without_message(body: object) -> object:
    """A body with `...` for its sentence."""
    if isinstance(body, dict):
        return {name: without_message(value) for name, value in body.items()}
    return ... if isinstance(body, str) and "send this one again later" in body else body


@pytest.mark.parametrize("dialect", SHAPES)
def test_more_calls_are_refused_in_the_apis_own_words(full: tuple[str, FakeReranker], dialect: str) -> None:
    url, fake = full
    short = dict.fromkeys(("tei", "infinity", "weaviate", "elastic"), "rerank")
    tensors = "v2/models/{model}/infer"
    path = {**short, "nvidia": "v1/ranking", "kserve": tensors}.get(dialect, "v1/rerank")
    response = requests.post(f"{url}/{dialect}/{path.replace('{model}', MODEL)}", json=QUICK, timeout=30)
    assert response.status_code == 429
    assert without_message(response.json()) == SHAPES[dialect]
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["X-Request-Id"]
    assert len(fake.requests) == 2
    counts = requests.get(f"{url}/metrics", timeout=30).text
    route = f"/{dialect}/{path.replace('{model}', '{model:path}')}"
    assert f'rerankd_requests_total{{dialect="{dialect}",route="{route}",status="429"}} 1.0' in counts
    assert "rerankd_rejected_requests_total 1.0" in counts
    assert "rerankd_running_requests 2.0" in counts


def test_a_server_that_is_full_still_says_so(full: tuple[str, FakeReranker]) -> None:
    url, _ = full
    for path in ("/health", "/metrics", "/v1/models", "/load", "/version", "/info", "/openapi.json"):
        assert requests.get(url + path, timeout=30).status_code == 200
    assert requests.get(f"{url}/load", timeout=30).json() == {"server_load": 2}
    assert requests.get(f"{url}/info", timeout=30).json()["max_concurrent_requests"] == 2


def test_a_body_that_is_refused_is_not_read(full: tuple[str, FakeReranker]) -> None:
    connection = open_call(full[0], QUICK, sent=5)
    assert connection.recv(100).startswith(b"HTTP/1.1 429 ")
    connection.close()


def test_there_is_room_again_once_a_call_is_answered(full: tuple[str, FakeReranker]) -> None:
    url, fake = full
    assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 429
    fake.gate.set()
    until(lambda: requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200)


def test_a_client_that_hangs_up_makes_room() -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,), max_calls=1)) as url:
        connection = open_call(url, WAIT)
        assert fake.waiting.wait(30)
        assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 429
        connection.close()
        until(lambda: requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200)


def test_the_flag_sets_the_bound(bert_checkpoint: Path) -> None:
    long = {"query": "long", "documents": ["word " * 100] * 5000}
    with launched(SERVE, str(bert_checkpoint), "--max-concurrent-requests", "1") as server:
        waiting = open_call(server.url, long)
        until(lambda: requests.get(f"{server.url}/load", timeout=30).json() == {"server_load": 1})
        assert requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=30).status_code == 429
        waiting.close()
        until(lambda: requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=30).status_code == 200)


def test_bodies_that_do_not_arrive_take_no_place() -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,), max_calls=1, body_timeout=30)) as url:
        stalled = [open_call(url, QUICK, sent=5) for _ in range(20)]
        assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200
        assert requests.get(f"{url}/load", timeout=30).json() == {"server_load": 0}
        for connection in stalled:
            connection.close()


def test_a_place_is_taken_when_the_body_is_there() -> None:
    """Two calls came while there was one place: the second to send its body is refused."""
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,), max_calls=1)) as url:
        late = open_call(url, WAIT, sent=5)
        first = open_call(url, WAIT)
        assert fake.waiting.wait(30)
        late.sendall(json.dumps(WAIT).encode()[5:])
        assert late.recv(100).startswith(b"HTTP/1.1 429 ")
        fake.gate.set()
        assert first.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), body_timeout=0.2)) as url:
        connection = open_call(url, QUICK, sent=5)
        answer = b"".join(iter(lambda: connection.recv(1000), b""))  # until the server closes it
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"--body-timeout" in answer


@pytest.mark.parametrize("other", [None, "b"])
def test_all_bodies_together_are_bounded(other: str | None) -> None:
    """Those that are being read and those that are being answered; a body that is released frees its bytes.

    other: another model, for which further bodies are
    """
    fake = FakeReranker()
    models = Pool([Model.of(fake, (MODEL,)), Model.of(FakeReranker(), (other,))]) if other else fake
    body = {"query": "wait", "documents": ["a" * 600_000]}
    with running(models, Settings(names=(MODEL,), max_body=1 << 20, max_bodies=1 << 20)) as url:
        answering = open_call(url, body)
        assert fake.waiting.wait(30)
        body["model"] = other or MODEL
        refused = requests.post(f"{url}/v1/rerank", json=body, timeout=30)
        assert (refused.status_code, int(refused.headers["Retry-After"])) == (429, 1)
        assert "--max-bodies-mb" in refused.text
        answering.close()
        until(lambda: fake.cancelled == 1)
        reading = open_call(url, body, sent=600_000)
        until(lambda: requests.post(f"{url}/v1/rerank", json={**body, "query": "a"}, timeout=30).status_code == 429)
        reading.close()
        until(lambda: requests.post(f"{url}/v1/rerank", json={**body, "query": "a"}, timeout=30).status_code == 200)


def test_bodies_that_stall_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: one that arrives in seconds is not cut off. Those that are being answered stay."""
    fake, large = FakeReranker(), {"query": "a", "documents": ["a" * 600_000]}
    monkeypatch.setattr(body, "PATIENCE", math.inf)
    with running(fake, Settings(names=(MODEL,), max_body=1 << 20, max_bodies=1 << 20)) as url:
        stalled = [open_call(url, large, sent=500_000) for _ in range(2)]
        until(lambda: requests.post(f"{url}/v1/rerank", json=large, timeout=30).status_code == 429)
        monkeypatch.setattr(body, "PATIENCE", 0.0)
        answering = open_call(url, {**large, "query": "wait"})
        assert fake.waiting.wait(30)
        for connection in stalled:
            answer = connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 429 ")
            connection.close()
        assert requests.post(f"{url}/v1/rerank", json=large, timeout=30).status_code == 429
        fake.gate.set()
        assert answering.recv(100).startswith(b"HTTP/1.1 200 ")
        answering.close()
        until(lambda: requests.post(f"{url}/v1/rerank", json=large, timeout=30).status_code == 200)


def halved(url: str, path: str) -> tuple[int, str | None]:
    """Status and `Retry-After` of a call half of whose body was sent."""
    address = urlsplit(url)
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)) as call:
        call.putrequest("POST", path)
        call.putheader("Content-Type", "application/json")
        call.putheader("Content-Length", "1000")
        call.endheaders(b'{"query": ')
        answer = call.getresponse()
        return answer.status, answer.headers["Retry-After"]


def test_a_call_that_no_model_takes_is_refused_before_its_body_is_read() -> None:
    """The body names the model, unless the path does: as long as one model has a place, it has to be read."""
    fakes = {name: FakeReranker() for name in ("a", "b")}
    pool = Pool([Model.of(fake, (name,)) for name, fake in fakes.items()])
    with running(pool, Settings(names=("a",), max_queued_calls=1)) as url:
        reading = open_call(url, {**QUICK, "model": "b"}, sent=5)
        calls = [open_call(url, {**WAIT, "model": "a"})]
        assert fakes["a"].waiting.wait(30)
        # The path names a model that is full, and one that is not there.
        assert halved(url, "/v2/models/a/infer")[0] == 429
        assert halved(url, "/v2/models/c/infer")[0] == 404
        assert requests.post(f"{url}/v1/rerank", json={**QUICK, "model": "a"}, timeout=30).status_code == 429
        reading.sendall(json.dumps({**QUICK, "model": "b"}).encode()[5:])
        assert reading.recv(100).startswith(b"HTTP/1.1 200 ")
        calls.append(open_call(url, {**WAIT, "model": "b"}))
        assert fakes["b"].waiting.wait(30)
        # Now the body does not matter.
        fakes["a"].loaded, fakes["b"].loaded = SLOW, replace(SLOW, rate=1000)
        assert halved(url, "/v1/rerank") == (429, "5"), "the model that is free first"
        pool.models[1].asleep = True
        assert halved(url, "/v2/models/b/infer")[0] == 503
        for fake in fakes.values():
            fake.gate.set()
        for call in calls:
            assert call.recv(100).startswith(b"HTTP/1.1 200 ")
            call.close()
        reading.close()


SLOW = EngineLoad(waiting=50, batches=9, tokens=900, seconds=9, waiting_requests=2, waiting_tokens=4100, rate=100)


@pytest.mark.parametrize(
    ("settings", "load", "flag"),
    [
        ({"max_queued_tokens": 4000}, SLOW, "--max-queued-tokens"),
        ({"max_queued_calls": 1}, SLOW, "--max-queued-requests"),
    ],
)
def test_what_waits_is_bounded_before_a_body_is_read(settings: dict[str, int], load: EngineLoad, flag: str) -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,), **settings)) as url:  # type: ignore[arg-type]
        waiting = open_call(url, WAIT)
        assert fake.waiting.wait(30)
        fake.loaded = load
        refused = requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30)
        assert refused.status_code == 429
        assert flag in refused.text
        # 4,100 tokens at 100 tokens a second.
        assert refused.headers["Retry-After"] == "41"
        unread = open_call(url, QUICK, sent=5)
        assert unread.recv(100).startswith(b"HTTP/1.1 429 ")
        # Of the two calls that are answered then, one is in the running batch.
        fake.loaded = replace(load, waiting_tokens=100, running=1)
        assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200
        fake.gate.set()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
        for connection in (waiting, unread):
            connection.close()


@pytest.mark.parametrize("rate", [0, 0.001])
def test_the_seconds_to_wait_are_bounded(rate: float) -> None:
    fake = FakeReranker()
    fake.loaded = replace(SLOW, rate=rate)
    with running(fake, Settings(names=(MODEL,), max_queued_tokens=1)) as url:
        refused = requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "600" if rate else "1")


def test_a_late_answer_is_a_504_and_its_work_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,), request_timeout=0.2)) as url:
        late = requests.post(f"{url}/v1/rerank", json=WAIT, timeout=30)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == 504
        assert "--request-timeout" in late.json()["error"]["message"]
        tei = requests.post(f"{url}/tei/rerank", json={"query": "wait", "texts": ["a"]}, timeout=30)
        assert (tei.status_code, tei.json()["error_type"]) == (504, "Overloaded")
        assert fake.cancelled == 2
        assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200
        assert requests.get(f"{url}/load", timeout=30).json() == {"server_load": 0}
    assert "Traceback" not in caplog.text


def test_queue_and_time_are_bounded_with_the_real_engine(
    bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request may have more tokens than may wait, and another is refused. What is late leaves the queue."""
    long = {"query": "long", "documents": ["word " * 50] * 100}
    with Reranker(str(bert_checkpoint), dtype="float32", max_batch_tokens=256, max_queued_tokens=2000) as reranker:
        model, go = reranker._engine.model, threading.Event()

        def gated(batch: PackedBatch) -> Any:
            assert go.wait(60)
            return model(batch)

        vars(gated)["shares_prefix"] = model.shares_prefix
        monkeypatch.setattr(reranker._engine, "model", gated)
        settings = Settings(names=("model",), max_queued_tokens=10**9, request_timeout=5)
        with running(reranker, settings) as url, ThreadPoolExecutor() as pool:
            calls = [pool.submit(requests.post, f"{url}/v1/rerank", json=long, timeout=60)]
            until(lambda: reranker.load().waiting > 50)
            refused = requests.post(f"{url}/v1/rerank", json=long, timeout=60)
            assert (refused.status_code, "--max-queued-tokens" in refused.text) == (429, True)
            assert int(refused.headers["Retry-After"]) > 0
            assert calls[0].result().status_code == 504
            assert reranker.load().waiting_tokens == 0
            go.set()
            assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=60).status_code == 200
