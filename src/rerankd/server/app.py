"""The ASGI app: a dialect at the root, every dialect below its own prefix, and the server's own routes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from rerankd.server.access import UNAUTHORIZED, KeyCheck
from rerankd.server.answer import Routed
from rerankd.server.calls import Calls
from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.base import Endpoint
from rerankd.server.dialects.names import spellings
from rerankd.server.http import HttpCall, response_of
from rerankd.server.metrics import Metrics
from rerankd.server.openapi import (
    MODEL_PARAMETER,
    NO_KEY,
    Examples,
    answers,
    describe,
    json_body,
    made_up_text,
    made_up_tokens,
    responses,
)
from rerankd.server.own_routes import HEALTH, add_own_routes
from rerankd.server.playground.routes import PAGES, add_playground
from rerankd.server.pool import Pool
from rerankd.server.problems import Problem
from rerankd.server.replies import refusal
from rerankd.server.service import PARAMETER, Serves, Service
from rerankd.server.settings import Settings
from rerankd.server.sleep_routes import add_sleep_routes
from rerankd.version import __version__

DESCRIPTION = """Scores how relevant each document is to a query.

The routes at the root belong to the server's own dialect, or to another one if a field or header says so
(docs/apis.md has the table). Every dialect also has a prefix of its own.
Headers of an answer report where it differs from the request: `X-Rerankd-Ignored` names fields without effect, or with
less effect than asked, `X-Rerankd-Truncated` the query or documents that were cut to fit, `X-Rerankd-Failed` documents
that were left out, `X-Rerankd-Below-Min-Score` documents left out for their scores, `X-Rerankd-Windows` the number of
prompts in which a listwise model read the documents. `Server-Timing` has the time of each stage."""


class _PlainRoute(APIRoute):
    """A route whose handler gets the request itself; FastAPI reads and checks nothing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's `APIRoute`."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def create_app(models: Serves | Pool | Service, settings: Settings) -> FastAPI:
    """The app that serves a reranker, the models of a pool, or a service's. It closes nothing: all are the caller's."""
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
    service = models if isinstance(models, Service) else Service(models, settings)
    served, root_dialect = service.served, service.root_dialect
    metrics = Metrics(service.hosted, settings.vllm_metrics, settings.labels)
    # Routes that need no key say so.
    security: dict[str, Any] | None = None if settings.protect_all else dict(NO_KEY)
    probes = {"/metrics", *HEALTH}
    names = spellings(name for hosted in service.hosted for name in hosted.model.names)
    examples: dict[tuple[str, str], Examples] = {}
    shown = served if service.pool.models[0].reranker else replace(served, tokenize=made_up_tokens, decode=made_up_text)
    for (method, path), routed in service.routes.items():
        dialect, endpoint = routed[0]
        if endpoint.probe:
            # Of a model's probe, the paths of our names: an answer to any other name would tell ours.
            probes.update(path.replace(PARAMETER, name) for name in names)
        examples[method, path] = answers(routed, shown)
        app.router.add_api_route(
            # A model's name may have slashes.
            path.replace(PARAMETER, "{model:path}"),
            _handler(routed, service),
            methods=[method],
            summary=endpoint.summary,
            description=_spoken_here(routed),
            tags=[dialect.name if f"{path}/".startswith(f"/{dialect.name}/") else "rerank"],
            operation_id=_operation_id(method, path, endpoint),
            response_class=JSONResponse if endpoint.reply is not None else Response,
            responses=responses(routed),
            openapi_extra={
                **(json_body(routed) if endpoint.reads else (security or {}) if endpoint.probe else {}),
                **(MODEL_PARAMETER if PARAMETER in path else {}),
            },
            route_class_override=_PlainRoute,
        )
    bodies = {endpoint.body for dialect in DIALECTS.values() for endpoint in dialect.endpoints}
    describe(app, bodies, examples, bool(settings.keys))

    add_own_routes(app, service, metrics, settings.protect_all)
    if settings.sleep_routes:
        add_sleep_routes(app, service, settings.shutdown_timeout)
    if settings.playground:
        add_playground(app, service.hosted, root_dialect.name, settings.docs, bool(settings.keys))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        call = f"{request.method} {request.url.path}"
        response = _refused(request, service, Problem(error.status_code, f"{call}: {error.detail}. See /docs."))
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # the error names the methods of one route, where a path may have several
            response.headers["Allow"] = ", ".join(sorted(_methods(app, request)))
        return response

    _answer_heads(app)
    _guard(app, settings, service, frozenset(probes | PAGES if settings.playground else probes))
    # Added last, this middleware runs first, so it also sees the calls that others refuse.
    app.add_middleware(Calls, metrics=metrics, traces=settings.traces)
    return app


def _answer_heads(app: FastAPI) -> None:
    """Have every route for GET answer HEAD too (RFC 9110, 9.1); the HTTP server sends no body then."""
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
    name = path.strip("/").replace("/", "_").replace(PARAMETER, "model")
    return name if method == endpoint.methods[0] else f"{name}_{method.lower()}"


def _guard(app: FastAPI, settings: Settings, service: Service, open: frozenset[str]) -> None:
    """open: the paths that need no key unless all do"""

    def refuse(request: Request) -> Response:
        return _refused(request, service, UNAUTHORIZED)

    if settings.keys:
        app.add_middleware(
            KeyCheck,
            keys=settings.keys,
            open=frozenset() if settings.protect_all else open,
            refuse=refuse,
        )
    # Added after KeyCheck, this runs before it: a browser asks for permissions without a key, and must see refusals.
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
                "X-Rerankd-Windows",
                "Server-Timing",
            ],
        )


def _refused(request: Request, service: Service, problem: Problem) -> Response:
    """The answer to a call whose body is not read."""
    dialect = service.spoken(get_route_path(request.scope), request.headers)
    request.state.called.dialect = dialect.name
    return response_of(refusal(dialect, problem))


def _handler(routed: Sequence[Routed], service: Service) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def handler(request: Request) -> Response:
        return response_of(await service.answer(HttpCall(request), routed, request.state.called))

    return handler


def _spoken_here(routed: Sequence[Routed]) -> str:
    """The text of /docs under a route's summary."""
    names = list(dict.fromkeys(dialect.name for dialect, _ in routed))
    if len(names) == 1:
        return f"In the shape of {names[0]}, for every call."
    return f"In the shape of {names[0]}, or if a field or a header says so, of {', '.join(names[1:])}."
