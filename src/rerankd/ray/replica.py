"""A replica that Ray Serve runs: the app of `rerankd serve` behind Ray's proxies, and methods for Ray's handles."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerankd.arguments import by_query, requested, scores_in_place
from rerankd.cli.replica import launch_of
from rerankd.cli.start import opened
from rerankd.contents import ContentLike
from rerankd.core import (
    Chunking,
    EngineBusy,
    EngineDead,
    EngineLoad,
    InvalidRequest,
    ModelError,
    OnError,
    RerankResult,
    Truncation,
)
from rerankd.memory import exempt_from_collection
from rerankd.ray.scaling import BUSY, RATE, WAITING
from rerankd.server.app import create_app
from rerankd.server.dialects.names import ignored_model, not_ours
from rerankd.server.hosted import choose
from rerankd.server.logs import ACCESS
from rerankd.server.problems import Problem
from rerankd.server.service import Serves, Service
from rerankd.version import __version__

log = logging.getLogger("rerankd")

WATCH_SECONDS = 0.5
"""The seconds between two checks of the engine."""


class Replica:
    """A replica. Ray gives its class an app, and calls its methods in one event loop."""

    def __init__(self, args: Mapping[str, Any]) -> None:
        """args: the flags of `serve`; see `rerankd.ray.deployment`

        Loads the models, which takes its time. Raises RerankdError.
        """
        from ray import serve

        self._open = ExitStack()
        launch, notes = launch_of(args)
        log_to_ray(launch.log_level, launch.access_log)
        for note in notes:
            log.info("%s", note)
        context = serve.get_replica_context()
        labels = {
            "ray_application": context.app_name,
            "ray_deployment": context.deployment,
            "ray_replica": context.replica_tag,
        }
        self._pool, self._settings = self._open.enter_context(opened(launch, **launch.door.guards(), labels=labels))
        self._pool.begin()
        exempt_from_collection()
        self._service = Service(self._pool, self._settings)
        self._looked: tuple[float, EngineLoad] = (time.monotonic(), self._pool.load())
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        names = ", ".join(name for model in self._pool.models for name in model.names)
        log.info("rerankd %s is ready: %s", __version__, names)

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self._service, self._settings)
        app.add_middleware(_IdOfRay)
        return app

    async def rerank(
        self,
        query: ContentLike,
        documents: Sequence[ContentLike],
        instruction: str | None = None,
        top_n: int | None = None,
        *,
        model: str | None = None,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
        on_error: OnError = "fail",
        min_score: float | None = None,
    ) -> RerankResult:
        """`Reranker.rerank` for one query, called as `handle.rerank.remote(...)`.

        model: the name of the model, if there are several; the first by default

        Raises InvalidRequest, and EngineBusy if the request may be sent again.
        """
        request = requested(
            query, documents, instruction, top_n, truncation, chunking, activation, on_error, min_score=min_score
        )
        async with self._lent(model) as reranker:
            return (await reranker.answer_all([request]))[0]

    async def score(
        self,
        pairs: Iterable[tuple[ContentLike, ContentLike]],
        instruction: str | None = None,
        *,
        model: str | None = None,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
    ) -> list[float]:
        """`Reranker.score`, called as `handle.score.remote(...)`. `model` and errors are those of `rerank`."""
        listed = list(pairs)
        requests = by_query(listed, instruction, truncation, chunking, activation)
        async with self._lent(model) as reranker:
            results = await reranker.answer_all([request for request, _ in requests])
        return scores_in_place(list(zip(results, (places for _, places in requests), strict=True)), len(listed))

    async def check_health(self) -> None:
        """Raises the engine's failure. Ray asks regularly, and replaces a replica that fails."""
        if failure := self._pool.failure:
            raise EngineDead(str(failure))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The numbers that `QueueTokens` reads; Ray asks for them regularly."""
        now, load = time.monotonic(), self._pool.load()
        (before, last), self._looked = self._looked, (now, load)
        # A process computes one batch at a time, and several replicas of `data_parallel_size` one each.
        computed = (load.seconds - last.seconds) / max(len(load.replicas), 1)
        return {
            WAITING: float(load.waiting_tokens),
            RATE: load.rate,
            BUSY: computed / (now - before) if now > before else 0.0,
        }

    def __del__(self) -> None:
        """Called by Ray once all requests have been answered."""
        self._open.close()

    @asynccontextmanager
    async def _lent(self, model: str | None) -> AsyncIterator[Serves]:
        try:
            hosted = choose(model, self._service.hosted)
            if ignored_model(model, hosted.served) and model is not None:
                raise not_ours(model, hosted.served)
        except Problem as problem:
            raise InvalidRequest("model", str(problem).removeprefix("model: ")) from None
        try:
            async with self._pool.lend(hosted.model) as reranker:
                yield reranker
        except Problem as problem:
            raise (EngineBusy if problem.status == 503 else ModelError)(str(problem)) from None

    async def _watch(self) -> None:
        """End the process once the engine has failed: it would refuse at once, and so be sent the most requests."""
        meters = _Meters()
        while True:
            meters.show(self._pool.load())
            if failure := self._pool.failure:
                log.critical("The engine has failed: %s", failure)
                logging.shutdown()
                os._exit(1)
            await asyncio.sleep(WATCH_SECONDS)


class _Meters:
    """The engine's numbers among Ray's own metrics, which have each replica's."""

    def __init__(self) -> None:
        from ray.serve import metrics

        self._tokens = metrics.Gauge("rerankd_queue_tokens", "Tokens to compute for what waits.")
        self._requests = metrics.Gauge("rerankd_queue_requests", "Requests of which a document waits.")
        self._counters = {
            "batches": metrics.Counter("rerankd_batches", "Batches computed."),
            "tokens": metrics.Counter("rerankd_batch_tokens", "Tokens of the batches computed."),
            "seconds": metrics.Counter("rerankd_batch_seconds", "Seconds that the model took for them."),
        }
        self._shown = dict.fromkeys(self._counters, 0.0)

    def show(self, load: EngineLoad) -> None:
        self._tokens.set(load.waiting_tokens)
        self._requests.set(load.waiting_requests)
        for field, counter in self._counters.items():
            if (now := getattr(load, field)) > self._shown[field]:
                counter.inc(now - self._shown[field])
                self._shown[field] = now


class _IdOfRay:
    """An ASGI app around ours, which leaves `X-Request-Id` to Ray's proxy: it adds the call's id by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-Id"]
            await send(message)

        await self._app(scope, receive, without)


class _ToRay(logging.Handler):
    """Hands records to the logger of Ray Serve, which has the replica's file and the driver's stream."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("ray.serve").handle(record)


def log_to_ray(level: str, access: bool) -> None:
    """Write rerankd's log records to Ray's log of the replica.

    access: whether each call gets a line
    """
    logger = logging.getLogger("rerankd")
    logger.handlers, logger.propagate = [_ToRay()], False
    logger.setLevel("DEBUG" if level == "trace" else level.upper())
    logging.getLogger(ACCESS).setLevel(logging.NOTSET if access else logging.CRITICAL)
