"""vLLM's routes to unload and load models: /sleep, /wake_up and /is_sleeping (vLLM 0.32, `entrypoints/serve/sleep`).

vLLM has them in its development mode alone. Here too an option must ask for them: a caller of these routes can take a
model away from all others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rerankd.server.dialects.names import not_ours
from rerankd.server.http import response_of
from rerankd.server.openapi import refusal_of
from rerankd.server.pool import Model
from rerankd.server.problems import Problem
from rerankd.server.replies import refusal
from rerankd.server.service import Service

LEVELS = ("1", "2")
MODES = ("abort", "wait")


class Sleeping(BaseModel):
    """Whether the models sleep."""

    is_sleeping: bool


def _check_site(request: Request) -> None:
    """Raise a 403 `Problem` for a call from a web page of another site.

    A browser sends a POST without a body, or with a form, to any server, and tells it only where the call comes from.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if request.method == "POST" and (site not in (None, "same-origin", "none") or not own):
        raise Problem(403, "A web page of another site cannot unload or load models.")


def add_sleep_routes(app: FastAPI, service: Service, patience: float) -> None:
    """Add the routes. `model` in the query string names one model, and may be repeated; without it all are meant.

    patience: seconds in which calls are answered that are waited for
    """
    root_dialect = service.root_dialect

    def models(request: Request) -> list[Model]:
        all_models = [hosted.model for hosted in service.hosted]
        names = request.query_params.getlist("model")
        for name in names:
            if not any(name in model.names for model in all_models):
                raise not_ours(name, service.served)
        return [model for model in all_models if not names or {*names} & {*model.names}]

    def refusing(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            request.state.called.dialect = root_dialect.name
            try:
                _check_site(request)
                return await answer(request)
            except Problem as problem:
                return response_of(refusal(root_dialect, problem))

        return handler

    async def sleep(request: Request) -> Response:
        level, mode = request.query_params.get("level", "1"), request.query_params.get("mode", "abort")
        if level not in LEVELS:
            raise Problem(400, "must be 1 or 2; both unload the weights, which are read again.", "level")
        if mode not in MODES:
            raise Problem(400, "must be abort or wait: requests in flight are refused, or answered first.", "mode")
        await service.pool.sleep(models(request), patience if mode == "wait" else None)
        return Response()

    async def wake_up(request: Request) -> Response:
        await service.pool.wake(models(request))
        # vLLM wakes weights and a cache apart; here there is one thing to wake.
        return Response(headers={"X-Rerankd-Ignored": "tags"} if "tags" in request.query_params else {})

    async def is_sleeping(request: Request) -> Response:
        return JSONResponse({"is_sleeping": all(model.asleep for model in models(request))})

    locked = {
        status: refusal_of([root_dialect], status) for status in (400, 401, 503, 504) if status in root_dialect.errors
    }
    options: dict[str, Any] = {"tags": ["server"], "responses": locked}
    app.add_api_route(
        "/sleep", refusing(sleep), methods=["POST"], summary="Unload models", response_class=Response, **options
    )
    app.add_api_route(
        "/wake_up", refusing(wake_up), methods=["POST"], summary="Load models again", response_class=Response, **options
    )
    app.add_api_route(
        "/is_sleeping",
        refusing(is_sleeping),
        methods=["GET"],
        summary="Whether models sleep",
        response_model=Sleeping,
        **options,
    )
