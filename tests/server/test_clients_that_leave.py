"""Clients that hang up, and servers that stop."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from rerankd.core import EngineClosed, RerankRequest, RerankResult
from rerankd.server.app import create_app
from rerankd.server.run import Lifetime, ListenError, bind, serve
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running

WAIT = {"query": "wait", "documents": ["a"]}
QUICK = {"query": "quick", "documents": ["a"]}


def until(condition: Callable[[], bool], seconds: int = 60) -> None:
    for _ in range(100 * seconds):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


def open_call(base: str, body: dict[str, Any], sent: int | None = None) -> socket.socket:
    """A connection on which a call, or `sent` bytes of its body, was sent and nothing was read."""
    address = urlsplit(base)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + data[:sent])
    return connection


def test_a_client_that_hangs_up_cancels_its_request() -> None:
    reranker = FakeReranker()
    with running(reranker, Settings(names=(MODEL,))) as url:
        connection = open_call(url, WAIT)
        assert reranker.waiting.wait(30)
        assert reranker.cancelled == 0
        connection.close()
        until(lambda: reranker.cancelled == 1)
        assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200


def test_a_client_that_hangs_up_in_its_body_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,))) as url, caplog.at_level("INFO", "rerankd"):
        open_call(url, QUICK, sent=10).close()
        until(lambda: "the client hung up" in caplog.text)
        assert requests.post(f"{url}/v1/rerank", json=QUICK, timeout=30).status_code == 200
    assert {record.levelname for record in caplog.records if record.name == "rerankd"} == {"INFO"}


def test_a_client_that_stays_is_answered() -> None:
    reranker = FakeReranker()
    with running(reranker, Settings(names=(MODEL,))) as url, ThreadPoolExecutor() as pool:
        answer = pool.submit(requests.post, f"{url}/v1/rerank", json=WAIT, timeout=30)
        assert reranker.waiting.wait(30)
        reranker.gate.set()
        assert answer.result().status_code == 200
        assert reranker.cancelled == 0


class ClosableReranker(FakeReranker):
    """Fails what waits once it is closed, as the engine does."""

    async def answer(self, request: RerankRequest) -> RerankResult:
        result = await super().answer(request)
        if self.closed.is_set():
            raise EngineClosed("The engine was closed before this request was answered.")
        return result

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()
        self.gate.set()


@contextmanager
def ending(reranker: ClosableReranker, seconds: float) -> Iterator[tuple[str, Callable[[], None]]]:
    """A server as the commands run it: its URL, and what stands for a signal. It must be gone at the end."""
    settings = Settings(names=(MODEL,))

    listener = bind("127.0.0.1", 0)
    ready = threading.Event()
    app = create_app(reranker, settings)
    lifetime = Lifetime(ready.set, reranker.close, seconds, settings.draining)
    quiet = {"version": 1, "disable_existing_loggers": False}
    thread = threading.Thread(target=serve, args=(app, listener, lifetime, quiet))
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", settings.draining.set
    finally:
        settings.draining.set()
        thread.join(60)
        assert not thread.is_alive()


def test_running_requests_are_answered_at_the_end() -> None:
    reranker = ClosableReranker()
    with ending(reranker, seconds=30) as (url, end), ThreadPoolExecutor() as pool:
        answer = pool.submit(requests.post, f"{url}/v1/rerank", json=WAIT, timeout=30)
        assert reranker.waiting.wait(30)
        assert requests.get(f"{url}/ready", timeout=30).status_code == 200
        end()
        for path, status in (("/ready", 503), ("/ping", 503), ("/health", 200), ("/metrics", 200)):
            assert requests.get(url + path, timeout=30).status_code == status
        refused = requests.post(f"{url}/cohere/v2/rerank", json=QUICK, timeout=30)
        assert (refused.status_code, list(refused.json())) == (503, ["message"])
        assert int(refused.headers["Retry-After"]) > 0
        reranker.gate.set()
        assert answer.result().status_code == 200
        until(lambda: refuses_connections(url))


def test_requests_that_take_too_long_are_refused_at_the_end() -> None:
    reranker = ClosableReranker()
    with ending(reranker, seconds=0.1) as (url, end), ThreadPoolExecutor() as pool:
        answer = pool.submit(requests.post, f"{url}/v1/rerank", json=WAIT, timeout=30)
        assert reranker.waiting.wait(30)
        end()
        response = answer.result()
    assert reranker.closed.is_set()
    assert reranker.cancelled == 0
    assert response.status_code == 503
    assert response.json()["error"]["code"] == 503
    assert "shutting down" in response.json()["error"]["message"]


def test_a_stalled_upload_does_not_keep_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with ending(ClosableReranker(), seconds=0) as (url, end):
        connection = open_call(url, QUICK, sent=10)
        time.sleep(0.2)
        end()
        assert connection.recv(100).startswith(b"HTTP/1.1 503 ")
        connection.close()
    assert "Traceback" not in caplog.text


def refuses_connections(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except OSError:
        return True
    return False


def test_an_address_in_use_is_said_in_one_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"^Cannot listen on 127.0.0.1:{port}: another program .* --port\.$"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "192.0.2.1"])
def test_an_address_of_another_machine_is_said_in_one_line(host: str) -> None:
    with pytest.raises(ListenError, match=r"^Cannot listen on .* --host\.$"):
        bind(host, 0)


def test_an_address_taken_while_the_model_loaded_is_said_in_one_line() -> None:
    """Two programs can bind one address as long as neither listens."""
    with bind("127.0.0.1", 0) as ours, bind("127.0.0.1", ours.getsockname()[1]) as theirs:
        theirs.listen()
        app = create_app(FakeReranker(), Settings(names=(MODEL,)))
        lifetime = Lifetime(lambda: None, lambda: None, 1, threading.Event())
        with pytest.raises(ListenError, match="another program listens there"):
            serve(app, ours, lifetime, {"version": 1, "disable_existing_loggers": False})


def test_many_clients_each_get_their_own(vllm_server: str) -> None:
    from rerankd.core import text_content
    from tests.server.fakes import fake_score

    def call(client: int) -> None:
        documents = [f"document {client} {number}" for number in range(client % 7 + 1)]
        body = {"query": f"query {client}", "documents": documents}
        results = requests.post(f"{vllm_server}/v1/rerank", json=body, timeout=30).json()["results"]
        query = text_content(body["query"])
        assert {one["index"]: one["relevance_score"] for one in results} == {
            index: fake_score(query, text_content(document)) for index, document in enumerate(documents)
        }

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(call, range(200)))


def test_a_failing_request_cancels_its_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of several requests is answered or refused whole."""
    from rerankd.core import text_content
    from rerankd.server.answer import _score_all
    from rerankd.server.dialects.base import Call, Nothing

    monkeypatch.setattr("rerankd.server.answer.REQUESTS_TOGETHER", 1)

    async def main() -> int:
        reranker = FakeReranker()
        requests = [RerankRequest(text_content(query), (text_content("a"),)) for query in ("wait", "break")]
        with pytest.raises(RuntimeError):
            await _score_all(reranker, Call(Nothing(), tuple(requests)))
        await asyncio.sleep(0.05)
        return reranker.cancelled

    assert asyncio.run(main()) == 1
