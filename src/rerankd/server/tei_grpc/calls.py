"""Calls of the HTTP app by methods of gRPC: both have the same keys, limits, errors, counters, log lines and spans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import urlencode

import grpc
from starlette.types import ASGIApp, Message

from rerankd.core import RerankResult, seconds_by_stage
from rerankd.server.body import LARGE, encode_json
from rerankd.server.called import Called

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    424: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""TEI's codes for the statuses of its HTTP API here. What TEI's tokenizer cannot read (422) is a wrong field here."""
OF_HTTP = ("content-", "connection", "transfer-", "host", "date")
"""The beginnings of the names of headers that belong to HTTP alone."""
MOST = (1 << 32) - 1
"""Counters of messages stop there."""
T = TypeVar("T")


class Refused(Exception):
    """A call that gets an error. `busy` where the server has no place for it now."""

    def __init__(self, status: int, message: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.code = CODES.get(status, grpc.StatusCode.INTERNAL)
        self.busy = status == 429
        self.metadata = metadata
        self.retry_after = float(dict(metadata).get("retry-after", 1))


@dataclass(frozen=True, slots=True)
class Answer:
    """The app's answer.

    content: its JSON, of `size` bytes
    metadata: the headers that are gRPC's metadata too
    results: the results that the answer shows
    """

    content: Any
    size: int
    metadata: tuple[tuple[str, str], ...]
    results: Sequence[RerankResult]


class App:
    """The HTTP app, for calls that come in otherwise.

    scheme: `http` or `https`
    tasks: each call is one of them until it is answered, as calls over HTTP are
    """

    def __init__(self, app: ASGIApp, scheme: str, tasks: set[asyncio.Task[None]]) -> None:
        self._app = app
        self._scheme = scheme
        self._tasks = tasks

    async def call(self, path: str, body: Callable[[], Mapping[str, Any]] | None, size: int, context: Any) -> Answer:
        """The app's answer to a POST of a JSON body, or to a GET without a body. Raises Refused.

        body: makes the body; size: the bytes of the message

        If this is cancelled, because the client of gRPC has left or its deadline is over, the app sees a client that
        has hung up.
        """
        client_metadata = dict(context.invocation_metadata())
        model = {"model": client_metadata["model"]} if client_metadata.get("model") else {}

        def encoded() -> bytes:
            return b"" if body is None else encode_json({**body(), **model}, size > LARGE)

        call = _AppCall(await aside(encoded, size))
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "method": "GET" if body is None else "POST",
            "scheme": self._scheme,
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(model).encode(),
            "root_path": "",
            "headers": [(b"host", b"grpc"), (b"content-type", b"application/json"), *_headers(client_metadata)],
            "client": _address(context.peer()),
            "server": None,
            "state": {},
        }
        task = asyncio.ensure_future(self._run(scope, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            call.gone.set()
            raise
        metadata = tuple((name, value) for name, value in call.headers.items() if not name.startswith(OF_HTTP))
        if call.status >= 400:
            raise Refused(call.status, _message(call), metadata)
        called: Called = scope["state"]["called"]
        content = await aside(partial(json.loads, call.answer), len(call.answer))
        return Answer(content, len(call.answer), metadata, called.results)

    async def _run(self, scope: dict[str, Any], call: _AppCall) -> None:
        await self._app(scope, call.receive, call.send)


class _AppCall:
    """The two ends of an ASGI call. gone: its client has left"""

    def __init__(self, body: bytes) -> None:
        self.gone = asyncio.Event()
        self.status = 500
        self.headers: dict[str, str] = {}
        self.answer = bytearray()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        """See ASGI."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.answer += message.get("body", b"")


async def aside(task: Callable[[], T], size: int) -> T:
    """Do a task; in a thread, where it is about more bytes than the event loop has time for."""
    return await asyncio.to_thread(task) if size > LARGE else task()


def spent(characters: int, began: float, results: Sequence[RerankResult]) -> dict[str, int]:
    """The fields of a message `Metadata`. began: by `perf_counter`"""
    took = seconds_by_stage(stage for result in results for stage in result.stages)
    names = {"tokenization_time_ns": "tokenise", "queue_time_ns": "queue", "inference_time_ns": "model"}
    return {
        "compute_chars": min(characters, MOST),
        "compute_tokens": min(sum(result.prompt_tokens for result in results), MOST),
        "total_time_ns": int((perf_counter() - began) * 1e9),
        **{name: int(took.get(stage, 0.0) * 1e9) for name, stage in names.items()},
    }


def _headers(metadata: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Metadata as headers; binary values have no place in HTTP."""
    return [
        (name.encode(), value.encode("latin-1", "replace"))
        for name, value in metadata.items()
        if isinstance(value, str) and not name.startswith(OF_HTTP)
    ]


def _address(peer: str) -> tuple[str, int]:
    """A client's address, which gRPC writes `ipv4:127.0.0.1:4242` or `ipv6:%5B::1%5D:4242`."""
    host, _, port = peer.partition(":")[2].rpartition(":")
    return host.replace("%5B", "").replace("%5D", ""), int(port) if port.isdecimal() else 0


def _message(call: _AppCall) -> str:
    try:
        return str(json.loads(call.answer)["error"])
    except (ValueError, LookupError, TypeError):
        return HTTPStatus(call.status).phrase
