"""Every call gets an id, is counted, logged and traced."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerankd.core import seconds_by_stage
from rerankd.server.called import NO_ROUTE, Called
from rerankd.server.logs import ACCESS
from rerankd.server.metrics import Metrics

if TYPE_CHECKING:
    from rerankd.server.tracing import Traces

log = logging.getLogger(ACCESS)


class Calls:
    """An ASGI app around another, that reports each call as its answer goes out."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces | None) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        self._metrics.watch_loop()
        called = Called.named(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["called"] = called
        trace = self._traces.begin(scope) if self._traces else None

        def report(status: int) -> None:
            seconds = perf_counter() - began
            called.route = getattr(scope.get("route"), "path", NO_ROUTE)
            self._metrics.answered(called.route, called.dialect, status, seconds, called.results, called.model)
            if trace:
                trace.answered(called, status)
            if log.isEnabledFor(logging.INFO):
                log.info(
                    '%s - "%s %s HTTP/%s" %d',
                    *_line(scope, status),
                    extra={**_fields(scope, called, status, seconds), **(trace.ids() if trace else {})},
                )

        async def reported(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = called.header_id()
                report(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, reported)
        except Exception:
            report(500)
            raise
        finally:
            if trace:
                trace.end()


def _line(scope: Scope, status: int) -> tuple[str, str, str, str, int]:
    """The values of uvicorn's access line, in its order."""
    client = scope.get("client")
    path = quote(scope["path"])
    query = scope["query_string"].decode("latin-1")
    return (
        f"{client[0]}:{client[1]}" if client else "",
        scope["method"],
        f"{path}?{query}" if query else path,
        scope["http_version"],
        status,
    )


def _fields(scope: Scope, called: Called, status: int, seconds: float) -> dict[str, Any]:
    client = scope.get("client")
    fields = {
        "request_id": called.header_id(),
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "route": called.route,
        "dialect": called.dialect,
        "status": status,
        "seconds": round(seconds, 6),
    }
    if called.model:
        fields["model"] = called.model
    if called.results:
        fields["documents"] = sum(result.scored for result in called.results)
        fields["prompt_tokens"] = sum(result.prompt_tokens for result in called.results)
    if len(called.results) == 1:
        fields["stage_seconds"] = {
            name: round(took, 6) for name, took in seconds_by_stage(called.results[0].stages).items()
        }
    return fields
