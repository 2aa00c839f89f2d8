"""Models behind every API, without a transport: calls of plain data to answers of plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from rerankd.core import EngineDead, EngineLoad, TextToken
from rerankd.server.answer import Answers, Desk, Routed, answer
from rerankd.server.body import Bodies
from rerankd.server.called import Called
from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.base import Dialect, Served
from rerankd.server.hosted import Hosted
from rerankd.server.incoming import Incoming, WholeCall
from rerankd.server.places import Places
from rerankd.server.pool import Model, Pool
from rerankd.server.problems import ASLEEP, ENGINE_DEAD, SHUTTING_DOWN, Problem
from rerankd.server.replies import Reply, refusal
from rerankd.server.settings import Settings
from rerankd.work import Workers

if TYPE_CHECKING:
    from rerankd.options import ModelInfo

CALL_THREADS = 2
"""Threads that parse large bodies and render large answers. More would not be faster, and would hold more memory."""


PARAMETER = "{model}"


class Serves(Answers, Protocol):
    """The methods of a `Reranker` that a service needs."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        ...

    @property
    def failure(self) -> EngineDead | None:
        """Why the engine has stopped answering; None while it answers."""
        ...

    def load(self) -> EngineLoad:
        """How busy the engine is."""
        ...

    def tokenize(self, text: str, special: bool) -> list[TextToken]:
        """A text's tokens."""
        ...

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """The text of tokens. Raises InvalidRequest."""
        ...


class Closes(Serves, Protocol):
    """A `Serves` that can be unloaded."""

    def close(self) -> None:
        """Stop the engine; requests that still wait fail."""
        ...


class Service:
    """Answers calls with one reranker, or with the models of a pool. It closes nothing: both are the caller's.

    pool: the models, loaded or not
    hosted: the models as calls see them; the first answers calls that name none
    root_dialect: the dialect at the root
    routes: the endpoints of each method and path
    """

    def __init__(self, models: Serves | Pool, settings: Settings) -> None:
        pool = models if isinstance(models, Pool) else Pool([Model.of(models, settings.names)])
        queued = settings.max_queued_calls, settings.max_queued_tokens
        # Calls that wait for one model do not block calls of another. With one model, a call that is read already has a
        # place among those that wait while its body is parsed, too.
        several = len(pool.models) > 1
        places = Places(pool.load, settings.max_calls, *((None, None) if several else queued))

        def unready() -> Problem | None:
            if pool.failure:
                return ENGINE_DEAD
            if settings.draining.is_set():
                return SHUTTING_DOWN
            return ASLEEP if pool.asleep else None

        def served(model: Model) -> Served:
            return Served(
                model.names,
                model.info,
                model.tokenize,
                model.decode,
                places,
                model.load,
                unready,
                lambda: model.asleep,
                settings.max_calls,
                settings.max_queued_calls,
                settings.limits,
                tuple(name for served_model in pool.models for name in served_model.names),
            )

        self.pool = pool
        self.root_dialect = DIALECTS[settings.dialect]
        self.routes = _routes(self.root_dialect)
        self.hosted = tuple(
            Hosted(model, served(model), Places(model.load, None, *(queued if several else (None, None))))
            for model in pool.models
        )
        self._desk = Desk(
            pool,
            self.hosted,
            Bodies(settings.max_body, settings.max_bodies, settings.body_timeout),
            places,
            Workers("rerankd-call", CALL_THREADS),
            settings.request_timeout,
        )

    @property
    def served(self) -> Served:
        """The first model."""
        return self.hosted[0].served

    @property
    def failure(self) -> EngineDead | None:
        """Why an engine has stopped answering; None while all answer."""
        return self.pool.failure

    async def call(self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Answer a call that is all there, of a JSON body. The answer's `X-Request-Id` is the call's own, or random.

        path: without a query string
        headers: beside the content type, in any case
        """
        request_headers = {name.lower(): value for name, value in (headers or {}).items()}
        called = Called.named(request_headers.get("x-request-id"))
        routed, parameters = self._route_of(method, path)
        if routed is None:
            status = 405 if any(matched(other, path) is not None for _, other in self.routes) else 404
            problem = Problem(status, f"{method} {path}: {HTTPStatus(status).phrase}. See /docs.")
            reply = refusal(self.spoken(path, request_headers), problem)
        else:
            incoming = WholeCall({"content-type": "application/json", **request_headers}, body, parameters)
            reply = await self.answer(incoming, routed, called)
        reply.headers["X-Request-Id"] = called.header_id()
        return reply

    async def answer(self, incoming: Incoming, routed: Sequence[Routed], called: Called) -> Reply:
        """Answer a call by one of the endpoints of its path. `called` is filled in."""
        return await answer(incoming, routed, self._desk, called)

    def _route_of(self, method: str, path: str) -> tuple[list[Routed] | None, Mapping[str, str]]:
        """The endpoints of a path, and its parameters."""
        if (method, path) in self.routes:
            return self.routes[method, path], {}
        for (route_method, template), routed in self.routes.items():
            if route_method == method and (parameters := matched(template, path)) is not None:
                return routed, parameters
        return None, {}

    def spoken(self, path: str, headers: Mapping[str, str]) -> Dialect:
        """The dialect of a call whose body is not read: by its path's prefix, its headers, or its path alone.

        headers: with names in lower case
        """
        prefix = path.split("/")[1:2]
        if prefix and prefix[0] in DIALECTS:
            return DIALECTS[prefix[0]]
        claiming = (dialect for dialect in DIALECTS.values() if dialect.claims({}, headers))
        if dialect := next(claiming, None):
            return dialect
        names = {
            dialect.name
            for (_, place), routed in self.routes.items()
            if matched(place, path) is not None
            for dialect, _ in routed
        }
        return DIALECTS[names.pop()] if len(names) == 1 else self.root_dialect


def _routes(root_dialect: Dialect) -> dict[tuple[str, str], list[Routed]]:
    """The endpoints of each method and path: under a prefix those of its dialect; at the root all, the root's first."""
    routes: dict[tuple[str, str], list[Routed]] = {}
    for dialect in sorted(DIALECTS.values(), key=lambda other: other is not root_dialect):
        for endpoint in dialect.endpoints:
            for method in endpoint.methods:
                for path in endpoint.paths:
                    prefixed = f"{path}/".startswith(f"/{dialect.name}/")
                    for place in (path,) if prefixed else (path, f"/{dialect.name}{path}"):
                        routes.setdefault((method, place), []).append((dialect, endpoint))
    return routes


def matched(template: str, path: str) -> Mapping[str, str] | None:
    """The parameters of a path by its template, `{model}` in which is any name, slashes in it or not; None for another
    path."""
    if PARAMETER not in template:
        return {} if template == path else None
    before, after = template.split(PARAMETER)
    name = path.removeprefix(before).removesuffix(after)
    return {"model": name} if name and f"{before}{name}{after}" == path else None
