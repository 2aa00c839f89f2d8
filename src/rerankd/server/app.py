"""The ASGI app: a dialect at the root, every dialect below its own prefix, and what the server says of itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rerankd.server.answer import Answers, answer, refusal
from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.base import Dialect, Endpoint, Served
from rerankd.server.openapi import describe, json_body
from rerankd.server.problems import Problem
from rerankd.version import __version__

if TYPE_CHECKING:
    from rerankd.reranker import ModelInfo

MEGABYTE = 1 << 20
DESCRIPTION = """Scores how relevant each document is to a query.

The routes at the root speak the server's own dialect; every dialect is also below its own prefix.
Two headers of an answer report what was not done as asked: `X-Rerankd-Ignored` names fields that have no effect,
`X-Rerankd-Truncated` the query or documents that were cut to fit."""


class Serves(Answers, Protocol):
    """What the app needs of a `Reranker`."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How the app serves its model.

    names: what the model is called, the first name first
    dialect: the one at the root
    max_body: the most bytes of a request's body
    docs: whether /docs and /openapi.json are there
    """

    names: tuple[str, ...]
    dialect: str = "vllm"
    max_body: int = 64 * MEGABYTE
    docs: bool = True


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
    app = FastAPI(
        title="rerankd",
        version=__version__,
        description=DESCRIPTION,
        docs_url="/docs" if settings.docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    served = Served(settings.names, reranker.info)
    own = DIALECTS[settings.dialect]
    mounted = [("", own), *((f"/{name}", dialect) for name, dialect in DIALECTS.items())]
    for prefix, dialect in mounted:
        for endpoint in dialect.endpoints:
            for path in endpoint.paths:
                app.add_api_route(
                    prefix + path,
                    _route(dialect, endpoint, reranker, served, settings.max_body),
                    methods=["POST"],
                    summary=endpoint.summary,
                    tags=[dialect.name if prefix else "rerank"],
                    operation_id=(prefix + path).strip("/").replace("/", "_"),
                    responses=_responses(dialect, endpoint),
                    openapi_extra=json_body(endpoint.body),
                )
    describe(app, {endpoint.body for _, dialect in mounted for endpoint in dialect.endpoints})

    created = int(time.time())

    @app.get("/v1/models", tags=["server"], summary="The names that the model answers to")
    async def models() -> ModelList:
        info = served.info
        return ModelList(
            data=[
                ModelCard(id=name, created=created, root=info.model, max_model_len=info.max_model_len)
                for name in served.names
            ]
        )

    @app.get("/health", tags=["server"], summary="200 while the server takes requests")
    async def health() -> Response:
        return Response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        dialect = DIALECTS.get(request.url.path.split("/")[1], own)
        wanted = f"{request.method} {request.url.path}"
        response = refusal(dialect, Problem(error.status_code, f"{wanted}: {error.detail}. See /docs."))
        response.headers.update(error.headers or {})
        return response

    return app


def _route(
    dialect: Dialect, endpoint: Endpoint[Any], reranker: Answers, served: Served, max_body: int
) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        return await answer(request, dialect, endpoint, reranker, served, max_body)

    return route


def _responses(dialect: Dialect, endpoint: Endpoint[Any]) -> dict[int | str, dict[str, Any]]:
    errors = {
        400: "a missing or wrong field, or a prompt too long where cutting is not allowed",
        404: "no model of that name",
        413: "a body above the server's limit",
        415: "a Content-Type that is not application/json",
        500: "a failure of the model or the server",
        503: "the server is shutting down",
    }
    headers = {
        "X-Rerankd-Ignored": {"description": "fields that have no effect here", "schema": {"type": "string"}},
        "X-Rerankd-Truncated": {"description": "what was cut to fit", "schema": {"type": "string"}},
    }
    answered: dict[str, Any] = {"model": endpoint.reply, "description": "the documents, ranked", "headers": headers}
    return {200: answered, **{code: {"model": dialect.error, "description": why} for code, why in errors.items()}}
