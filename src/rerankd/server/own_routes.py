"""Routes that belong to no dialect: the names of the models, health and metrics."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.names import not_ours
from rerankd.server.http import response_of
from rerankd.server.metrics import Metrics
from rerankd.server.openapi import NO_KEY, refusal_of
from rerankd.server.replies import refusal
from rerankd.server.service import Service

HEALTH = ("/health", *(f"/{name}/health" for name in DIALECTS))
"""Clients ask below the URL that they are given, which may have a prefix."""


class ModelCard(BaseModel):
    """A name that a model answers to."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "rerankd"
    root: str
    parent: None = None
    max_model_len: int
    permission: list[Any] = []


class ModelList(BaseModel):
    """The names that the models answer to."""

    object: str = "list"
    data: list[ModelCard]


def add_own_routes(app: FastAPI, service: Service, metrics: Metrics, protect_all: bool) -> None:
    """Add the routes; protect_all: whether health and metrics want a key too."""
    served, root_dialect = service.served, service.root_dialect
    created = int(time.time())
    # Routes that need no key say so.
    locked: dict[int | str, dict[str, Any]] = {401: refusal_of([root_dialect], 401)}
    open: dict[str, Any] = {"responses": locked} if protect_all else {"openapi_extra": dict(NO_KEY)}

    by_name = {name: hosted for hosted in service.hosted for name in hosted.model.names}

    def card(name: str) -> ModelCard:
        info = by_name[name].model.info
        return ModelCard(id=name, created=created, root=info.model, max_model_len=info.max_model_len)

    @app.get("/v1/models", tags=["server"], summary="The names that the model answers to", responses=locked)
    async def models() -> ModelList:
        return ModelList(data=[card(name) for name in by_name])

    not_found: dict[str, Any] = {"description": "no model of that name", "model": root_dialect.error}

    @app.get(
        "/v1/models/{model:path}",
        tags=["server"],
        summary="One of the names that the model answers to",
        response_model=ModelCard,
        responses={**locked, 404: not_found},
    )
    async def model(model: str, request: Request) -> ModelCard | Response:
        if model in by_name:
            return card(model)
        request.state.called.dialect = root_dialect.name
        return response_of(refusal(root_dialect, not_ours(model, served)))

    async def health() -> Response:
        return Response(status_code=503 if service.failure else 200)

    summary = "503 once the engine has failed"
    for path in HEALTH:
        app.get(path, tags=["server"], summary=summary, response_class=Response, **open)(health)

    @app.get(
        "/metrics",
        tags=["server"],
        summary="The metrics of the server, for Prometheus",
        response_class=PlainTextResponse,
        **open,
    )
    async def exposed() -> Response:
        return metrics.exposed()
