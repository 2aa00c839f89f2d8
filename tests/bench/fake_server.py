"""A rerank server that speaks every API of `bench serve` and scores by a rule, on a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

TOKENS_PER_DOCUMENT = 7


@dataclass
class Fake:
    """What the server saw, and how it misbehaves.

    delay: seconds that it takes for an answer
    fail: by a request's place in order, the status and body to answer with
    drop: results left out of each answer
    models: what its `/v1/models` lists
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    delay: float = 0.0
    fail: dict[int, tuple[int, Any]] = field(default_factory=dict)
    drop: int = 0
    models: list[dict[str, str]] = field(default_factory=lambda: [{"id": "fake/model"}])
    in_flight: int = 0
    most_in_flight: int = 0

    async def answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        place = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.url.path)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.delay)
        self.in_flight -= 1
        if place in self.fail:
            status, content = self.fail[place]
            return JSONResponse(content, status)
        documents = body.get("documents") or body["texts"]
        places = range(len(documents) - self.drop)
        tokens = TOKENS_PER_DOCUMENT * len(documents)
        kind = request.url.path.split("/")[1]
        if kind == "sglang":
            meta = {"prompt_tokens": TOKENS_PER_DOCUMENT}
            return JSONResponse([{"score": 0.5, "index": i, "meta_info": meta} for i in places])
        if kind == "tei":
            return JSONResponse([{"index": i, "score": 0.5} for i in places], headers={"x-compute-tokens": str(tokens)})
        results = [{"index": i, "relevance_score": 0.5} for i in places]
        if kind == "cohere":
            return JSONResponse({"results": results, "meta": {"tokens": {"input_tokens": tokens}}})
        if kind == "silent":
            return JSONResponse({"results": results})
        return JSONResponse({"results": results, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    app = FastAPI()
    app.add_api_route("/v1/models", lambda: {"data": fake.models})
    app.add_api_route("/{path:path}", fake.answer, methods=["POST"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    fake.url = f"http://127.0.0.1:{port}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join()
