"""Calls as plain data, without a socket: what file jobs do, and what the HTTP app does with a request that is there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import requests

from rerankd.server.replies import Reply
from rerankd.server.service import Service
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker

PANDA = json.dumps({"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]}).encode()


def call(
    method: str, path: str, body: bytes = PANDA, headers: Mapping[str, str] | None = None, **settings: Any
) -> Reply:
    service = Service(FakeReranker(), Settings(names=(MODEL, "short-name"), **settings))
    return asyncio.run(service.call(method, path, body, headers))


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/rerank", PANDA, {"X-Request-Id": "mine"}, 200),
        ("POST", "/cohere/v2/rerank", PANDA, {}, 200),
        ("POST", "/v1/rerank", b'{"query": "a", "documents": ["\\ud800"]}', {}, 200),
        ("POST", "/v1/rerank", PANDA, {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/rerank", b"not JSON", {}, 400),
        ("POST", "/v1/rerank", b'{"query": "break", "documents": ["x"]}', {}, 500),
        ("POST", "/v1/rerank", b'{"query": "a", "documents": ["x"], "instruction": "i"}', {}, 200),
        ("POST", "/v1/nothing", PANDA, {}, 404),
        ("POST", "/tei/nothing", PANDA, {}, 404),
        ("POST", "/nothing", PANDA, {"X-Fern-SDK-Name": "cohere"}, 404),
        ("GET", "/v1/rerank", b"", {}, 405),
        ("GET", "/tei/info", b"", {}, 200),
    ],
)
def test_a_call_is_answered_as_over_http(
    vllm_server: str, method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    reply = call(method, path, body, headers, max_body=1 << 20)
    over = requests.request(
        method, vllm_server + path, data=body, headers={"Content-Type": "application/json", **headers}, timeout=30
    )
    assert (reply.status, over.status_code) == (status, status)
    assert _same(json.loads(reply.body)) == _same(over.json())
    assert reply.media_type == over.headers["Content-Type"]
    told = {name for name in over.headers if name.startswith("X-Rerankd")}
    assert {name: reply.headers[name] for name in told} == {name: over.headers[name] for name in told}
    if "X-Request-Id" in headers:
        assert reply.headers["X-Request-Id"] == over.headers["X-Request-Id"] == "mine"
    else:
        assert len(reply.headers["X-Request-Id"]) == 16


def _same(answer: Any) -> str:
    """An answer without ids and times, which differ from call to call."""
    plain = {name: value for name, value in answer.items() if name not in ("id", "created")}
    return json.dumps(plain, sort_keys=True).partition(", under ")[0]


def test_limits_hold_where_they_are_set() -> None:
    assert call("POST", "/v1/rerank", max_body=10).status == 413
    assert call("POST", "/v1/rerank", max_body=len(PANDA)).status == 200
    reply = call("POST", "/v1/rerank", b'{"query": "wait", "documents": ["x"]}', request_timeout=0.05)
    assert reply.status == 504


def test_no_web_framework_is_needed() -> None:
    """Whatever is below the ASGI app, file jobs too, imports none of its libraries, nor torch before a model."""
    script = """
import asyncio, sys
sys.modules.update(dict.fromkeys(["starlette", "fastapi", "uvicorn", "httpx", "torch"]))
import rerankd.rank.batch
from pathlib import Path
from rerankd.options import ModelInfo
from rerankd.core import EngineLoad, RerankResult, ScoredDocument
from rerankd.server.service import Service
from rerankd.server.settings import Settings

class Plain:
    info = ModelInfo("m", Path("m"), "Plain", "cross-encoder", "cpu", "float32", 512, False)
    failure = None
    def load(self):
        return EngineLoad(waiting=0, batches=0, tokens=0, seconds=0.0)
    def tokenize(self, text, special):
        return []
    def decode(self, ids, skip_special):
        return ""
    async def answer_all(self, requests):
        return [RerankResult((ScoredDocument(0, 0.5, 3),), 3, 3, scored=1) for _ in requests]

service = Service(Plain(), Settings(names=("m",)))
print(asyncio.run(service.call("POST", "/v1/rerank", b'{"query": "q", "documents": ["d"]}')).status)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "200", done.stderr
