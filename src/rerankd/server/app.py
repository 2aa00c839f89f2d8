"""The ASGI app: a dialect at the root, every dialect below its own prefix, and what the server says of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route

from rerankd.core import EngineDead, EngineLoad
from rerankd.limits import RequestLimits
from rerankd.server.access import UNAUTHORIZED, Cors, KeyCheck
from rerankd.server.answer import ENGINE_DEAD, SHUTTING_DOWN, Answers, Desk, Routed, answer, refusal
from rerankd.server.body import Bodies
from rerankd.server.calls import Calls
from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.base import Dialect, Endpoint, Served
from rerankd.server.dialects.names import not_ours
from rerankd.server.metrics import Metrics
from rerankd.server.openapi import NO_KEY, Examples, answers, describe, json_body, refusal_of, responses
from rerankd.server.places import Places
from rerankd.server.playground.routes import PAGES, add_playground
from rerankd.server.problems import Problem
from rerankd.version import __version__
from rerankd.work import Workers

if TYPE_CHECKING:
    from rerankd.options import ModelInfo
    from rerankd.server.tracing import Traces

MEGABYTE = 1 << 20
CALL_THREADS = 2
"""Threads that parse large bodies and render large answers. More of them would be no sooner done, and hold more."""
DESCRIPTION = """Scores how relevant each document is to a query.

The routes at the root speak the server's own dialect, or another's where a field or header says so (docs/apis.md has
the table); every dialect is also below its own prefix.
Headers of an answer report what was not done as asked: `X-Rerankd-Ignored` names fields that have no effect, or
less than was asked, `X-Rerankd-Truncated` the query or documents that were cut to fit, `X-Rerankd-Failed` documents
that were left out, `X-Rerankd-Below-Min-Score` those left out for their scores. `Server-Timing` says what took how
long."""


class Serves(Answers, Protocol):
    """What the app needs of a `Reranker`."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        ...

    @property
    def failure(self) -> EngineDead | None:
        """Why the engine answers no more; None while it does."""
        ...

    def load(self) -> EngineLoad:
        """How busy the engine is."""
        ...

    def tokenize(self, text: str, special: bool) -> list[tuple[int, str]]:
        """A text's tokens as ids and strings."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How the app serves its model.

    names: what the model is called, the first name first
    dialect: the one at the root
    max_body, max_bodies: the most bytes of a request's body, and of all that are being read or answered
    body_timeout: seconds in which a body must arrive
    limits: what one request may hold
    docs: whether /docs and /openapi.json are there
    keys: those that open the server; empty for an open one
    protect_all: whether health probes and /metrics want a key too
    cors: what browsers are told, if anything
    root_path: what a proxy puts before every path
    max_calls: how many calls are answered at a time, more are refused; None for any number
    max_queued_calls, max_queued_tokens: how many of them, and how many tokens of theirs, wait for the model
    request_timeout: seconds from a call's body to its answer; None for any time
    traces: what makes spans of calls, if anything
    draining: set by whoever ends the server when new calls are to be refused
    playground: whether / and /playground are there
    """

    names: tuple[str, ...]
    dialect: str = "vllm"
    max_body: int = 64 * MEGABYTE
    max_bodies: int = 256 * MEGABYTE
    body_timeout: float = 60.0
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    docs: bool = True
    keys: tuple[str, ...] = ()
    protect_all: bool = False
    cors: Cors | None = None
    root_path: str = ""
    max_calls: int | None = None
    max_queued_calls: int | None = None
    max_queued_tokens: int | None = None
    request_timeout: float | None = None
    traces: Traces | None = None
    draining: threading.Event = field(default_factory=threading.Event)
    playground: bool = True


class ModelCard(BaseModel):
    """A name that the model answers to."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "rerankd"
    root: str
    parent: None = None
    max_model_len: int
    permission: list[Any] = []


class ModelList(BaseModel):
    """The names that the model answers to."""

    object: str = "list"
    data: list[ModelCard]


def create_app(reranker: Serves, settings: Settings) -> FastAPI:
    """The app that serves `reranker`. It closes nothing: the reranker is the caller's."""
    # FastAPI's own page is blank where the browser cannot reach a CDN.
    app = (FastAPIOffline if settings.docs else FastAPI)(
        title="rerankd",
        version=__version__,
        description=DESCRIPTION,
        docs_url="/docs" if settings.docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    app.root_path = settings.root_path
    places = Places(reranker.load, settings.max_calls, settings.max_queued_calls, settings.max_queued_tokens)

    def unready() -> Problem | None:
        if reranker.failure:
            return ENGINE_DEAD
        return SHUTTING_DOWN if settings.draining.is_set() else None

    served = Served(
        settings.names,
        reranker.info,
        reranker.tokenize,
        places,
        reranker.load,
        unready,
        settings.max_calls,
        settings.max_queued_calls,
        settings.limits,
    )
    desk = Desk(
        reranker,
        served,
        Bodies(settings.max_body, settings.max_bodies, settings.body_timeout),
        places,
        Workers("rerankd-call", CALL_THREADS),
        settings.request_timeout,
    )
    metrics = Metrics(served)
    own = DIALECTS[settings.dialect]
    # Those that need no key say so.
    told: dict[str, Any] | None = None if settings.protect_all else dict(NO_KEY)
    probes = {"/health", "/metrics"}
    examples: dict[tuple[str, str], Examples] = {}
    for (method, path), routed in _routes(own).items():
        dialect, endpoint = routed[0]
        if endpoint.probe:
            probes.add(path)
        examples[method, path] = answers(routed, served)
        app.add_api_route(
            path,
            _handler(routed, desk),
            methods=[method],
            summary=endpoint.summary,
            description=_spoken_here(routed),
            tags=[dialect.name if path.startswith(f"/{dialect.name}/") else "rerank"],
            operation_id=_operation_id(method, path, endpoint),
            response_class=JSONResponse if endpoint.reply is not None else Response,
            responses=responses(routed),
            openapi_extra=json_body(routed) if endpoint.reads else told if endpoint.probe else None,
        )
    bodies = {endpoint.body for dialect in DIALECTS.values() for endpoint in dialect.endpoints}
    describe(app, bodies, examples, bool(settings.keys))

    created = int(time.time())

    locked: dict[int | str, dict[str, Any]] = {401: refusal_of([own], 401)}
    open: dict[str, Any] = {"responses": locked} if settings.protect_all else {"openapi_extra": told}

    def card(name: str) -> ModelCard:
        info = served.info
        return ModelCard(id=name, created=created, root=info.model, max_model_len=info.max_model_len)

    @app.get("/v1/models", tags=["server"], summary="The names that the model answers to", responses=locked)
    async def models() -> ModelList:
        return ModelList(data=[card(name) for name in served.names])

    missing: dict[str, Any] = {"description": "no model of that name", "model": own.error}

    @app.get(
        "/v1/models/{model:path}",
        tags=["server"],
        summary="One of the names that the model answers to",
        response_model=ModelCard,
        responses={**locked, 404: missing},
    )
    async def model(model: str, request: Request) -> ModelCard | Response:
        if model in served.names:
            return card(model)
        request.state.called.dialect = own.name
        return refusal(own, not_ours(model, served))

    @app.get("/health", tags=["server"], summary="503 once the engine has failed", response_class=Response, **open)
    async def health() -> Response:
        return Response(status_code=503 if reranker.failure else 200)

    @app.get(
        "/metrics",
        tags=["server"],
        summary="What the server has counted, for Prometheus",
        response_class=PlainTextResponse,
        **open,
    )
    async def exposed() -> Response:
        return metrics.exposed()

    if settings.playground:
        add_playground(app, served, own.name, settings.docs, bool(settings.keys))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        dialect = _spoken(request, own)
        request.state.called.dialect = dialect.name
        wanted = f"{request.method} {request.url.path}"
        response = refusal(dialect, Problem(error.status_code, f"{wanted}: {error.detail}. See /docs."))
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # the error names the methods of one route, where a path may have several
            response.headers["Allow"] = ", ".join(sorted(_methods(app, request)))
        return response

    _answer_heads(app)
    _guard(app, settings, own, frozenset(probes | PAGES if settings.playground else probes))
    # Added last, it comes first: it sees what the others refuse.
    app.add_middleware(Calls, metrics=metrics, traces=settings.traces)
    return app


def _answer_heads(app: FastAPI) -> None:
    """Have whatever answers a GET answer a HEAD too (RFC 9110, 9.1); the HTTP server sends no body then."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=route.response_model,
                response_class=route.response_class,
                include_in_schema=False,
            )


def _methods(app: FastAPI, request: Request) -> set[str]:
    """The methods that the path of a call has."""
    routes = [
        route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE
    ]
    return {method for route in routes for method in route.methods or ()}


def _operation_id(method: str, path: str, endpoint: Endpoint[Any]) -> str:
    name = path.strip("/").replace("/", "_")
    return name if method == endpoint.methods[0] else f"{name}_{method.lower()}"


def _guard(app: FastAPI, settings: Settings, own: Dialect, open: frozenset[str]) -> None:
    """open: the paths that need no key unless all do"""

    def refuse(request: Request) -> Response:
        dialect = _spoken(request, own)
        request.state.called.dialect = dialect.name
        return refusal(dialect, UNAUTHORIZED)

    if settings.keys:
        app.add_middleware(
            KeyCheck,
            keys=settings.keys,
            open=frozenset() if settings.protect_all else open,
            refuse=refuse,
        )
    # Added after it, it comes before it: a browser asks what it may do without a key, and is told why it is refused.
    if cors := settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors.origins,
            allow_methods=cors.methods,
            allow_headers=cors.headers,
            allow_credentials=cors.credentials,
            expose_headers=[
                "X-Request-Id",
                "X-Rerankd-Ignored",
                "X-Rerankd-Truncated",
                "X-Rerankd-Failed",
                "X-Rerankd-Below-Min-Score",
                "Server-Timing",
            ],
        )


def _spoken(request: Request, own: Dialect) -> Dialect:
    """The dialect of a call whose body is not read: by its path's prefix, or its headers, or the server's own."""
    prefix = get_route_path(request.scope).split("/")[1:2]
    claiming = (dialect for dialect in DIALECTS.values() if dialect.claims({}, request.headers))
    return DIALECTS[prefix[0]] if prefix and prefix[0] in DIALECTS else next(claiming, own)


def _handler(routed: Sequence[Routed], desk: Desk) -> Callable[[Request], Awaitable[Response]]:
    async def handler(request: Request) -> Response:
        return await answer(request, routed, desk)

    return handler


def _spoken_here(routed: Sequence[Routed]) -> str:
    """What /docs says below a route's summary."""
    names = list(dict.fromkeys(dialect.name for dialect, _ in routed))
    if len(names) == 1:
        return f"In the words of {names[0]}, whatever the call holds."
    return f"In the words of {names[0]}, or where a field or a header says so, of {', '.join(names[1:])}."


def _routes(own: Dialect) -> dict[tuple[str, str], list[Routed]]:
    """What each method and path may mean: below a prefix that dialect's endpoints; at the root all, `own` first."""
    routes: dict[tuple[str, str], list[Routed]] = {}
    for dialect in sorted(DIALECTS.values(), key=lambda one: one is not own):
        for endpoint in dialect.endpoints:
            for method in endpoint.methods:
                for path in endpoint.paths:
                    for place in (path, f"/{dialect.name}{path}"):
                        routes.setdefault((method, place), []).append((dialect, endpoint))
    return routes
