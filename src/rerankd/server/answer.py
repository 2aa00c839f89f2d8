"""One call from its bytes to its answer, whatever its dialect."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from rerankd.core import (
    EngineBusy,
    EngineClosed,
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    ReplicaLost,
    RerankRequest,
    RerankResult,
)
from rerankd.server.body import LARGE, NESTED, Bodies
from rerankd.server.called import Called
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.hosted import Hosted, choose
from rerankd.server.incoming import Gone, Incoming
from rerankd.server.places import Places
from rerankd.server.pool import Pool
from rerankd.server.problems import ENGINE_DEAD, SHUTTING_DOWN, Problem, checked
from rerankd.server.replies import Reply, json_reply, refusal
from rerankd.server.reports import reports
from rerankd.work import Workers, all_of

if TYPE_CHECKING:
    from rerankd.options import ModelInfo

log = logging.getLogger("rerankd")

REQUESTS_TOGETHER = 64
"""Requests of one call, each of one query, that a thread reads one after another."""
READ_AT_ONCE = 4
"""Groups of requests that wait for the engine at the same time."""
SOON_RENDERED = 1000
"""The event loop renders up to this many documents, or outputs; more would take it tens of milliseconds."""
T = TypeVar("T")
Routed: TypeAlias = tuple[Dialect, Endpoint[Any]]


class Answers(Protocol):
    """The methods of a `Reranker` that answering needs."""

    async def answer_all(self, requests: Sequence[RerankRequest]) -> list[RerankResult]:
        """Score requests. Cancelling the awaiting task drops the documents that still wait."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """The objects that answer calls.

    hosted: the models; the first answers calls that name none
    places: the limit on calls that are answered at a time
    workers: threads for long work, which would block the event loop
    timeout: seconds from a call's body to its answer; None for any time
    """

    pool: Pool
    hosted: Sequence[Hosted]
    bodies: Bodies
    places: Places
    workers: Workers
    timeout: float | None = None


async def answer(incoming: Incoming, routed: Sequence[Routed], desk: Desk, called: Called) -> Reply:
    """Read, parse, score and render one call. Every failure becomes an error in the dialect's shape.

    routed: the endpoints of the path; the first that claims the call answers it, or else the first of all
    called: facts about the call, which are filled in
    """
    exchange = _Exchange(incoming, routed, desk, called)
    try:
        if not exchange.endpoint.reads:
            await exchange.parse(b"{}")
            return await exchange.in_time(exchange.answer())
        # A refused call costs nothing: its body is not read.
        if unready := exchange.hosted.served.unready():
            return exchange.refusal(unready)
        exchange.check()
        async with desk.bodies.read(incoming, exchange.endpoint.binary_header) as body:
            with desk.places.take():
                await exchange.parse(body)
                with exchange.hosted.places.take():
                    return await exchange.in_time(exchange.answer())
    except Gone:
        log.info("%r: the client hung up", exchange.log_id)
        return Reply(499)
    except asyncio.CancelledError:  # only the server's shutdown cancels a call
        return exchange.refusal(SHUTTING_DOWN)
    except Problem as problem:
        return exchange.refusal(problem)
    except InvalidRequest as error:
        if exchange.call:
            error = InvalidRequest(exchange.call.word(error.field), exchange.call.said(error.problem))
        return exchange.refusal(Problem(400, error.problem, error.field, well_formed=True))
    except EngineDead:
        return exchange.refusal(ENGINE_DEAD)
    except EngineClosed:
        return exchange.refusal(SHUTTING_DOWN)
    except EngineBusy as error:
        return exchange.refusal(exchange.hosted.places.full(str(error)))
    except ReplicaLost as error:
        log.error("%r: %s", exchange.log_id, error)
        return exchange.refusal(Problem(503, str(error)))
    except OutOfMemory as error:
        log.error("%r: %s", exchange.log_id, error)
        return exchange.refusal(Problem(500, str(error)))
    except RecursionError:  # it was read, and cannot be checked or repeated
        return exchange.refusal(NESTED)
    except Exception:
        log.exception("%r failed", exchange.log_id)
        return exchange.refusal(
            Problem(500, f"The server failed on this request; its log says why, under {exchange.log_id}.")
        )
    finally:
        called.dialect = exchange.dialect.name


class _Exchange:
    """One call on its way to its answer. Workers do the long parts of the work."""

    def __init__(self, incoming: Incoming, routed: Sequence[Routed], desk: Desk, called: Called) -> None:
        self.dialect, self.endpoint = _claiming(routed, {}, incoming.headers, desk.hosted[0].served)
        self.call: Call[Any] | None = None
        self.hosted = desk.hosted[0]
        self._large = False
        self._began = 0.0
        self._body: bytes | bytearray = b""
        self._info: ModelInfo | None = None
        self._routed = routed
        self._desk = desk
        self._incoming = incoming
        self._called = called

    @property
    def id(self) -> str:
        return f"{self.endpoint.id_prefix}{self._called.id}"

    @property
    def log_id(self) -> str:
        """The id, cut to a length for log lines."""
        return f"{self.endpoint.id_prefix}{self._called.header_id()}"

    def refusal(self, problem: Problem) -> Reply:
        return refusal(self.dialect, problem)

    def check(self) -> None:
        """Raise a `Problem` for a call that no model can take now. The body, which may name one, is not read yet."""
        self._desk.places.check()
        named = self._incoming.parameters.get("model")
        possible = self._desk.hosted if named is None else [choose(named, self._desk.hosted)]
        refused: list[Problem] = []
        for hosted in possible:
            try:
                hosted.check()
            except Problem as problem:
                refused.append(problem)
        if len(refused) == len(possible):
            raise min(refused, key=lambda problem: problem.retry_after)

    async def parse(self, body: bytes | bytearray) -> None:
        """Parse the body, and give the call the id that the body has. The timeout starts now."""
        self._began = time.monotonic()
        self._body = body
        self._large = len(body) > LARGE
        self.call = await (self.in_time(self._read()) if self._large else self._read())
        if self.call.id and not self._incoming.headers.get("x-request-id"):
            self._called.rename(self.call.id)

    async def _read(self) -> Call[Any]:
        if self._large:
            return await self._desk.workers.run(self._parse)
        return self._parse()

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`. It is cancelled when the client hangs up first (Gone), or when it is late (a 504 `Problem`)."""
        timeout = self._desk.timeout
        seconds_left = None if timeout is None else max(self._began + timeout - time.monotonic(), 0)
        working, hung_up = asyncio.ensure_future(work), asyncio.ensure_future(self._incoming.hung_up())
        try:
            await asyncio.wait((working, hung_up), timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if hung_up.done():
                raise Gone
            raise Problem(
                504,
                f"There was no answer within {timeout:g} seconds; send less at a time, or start the server with a "
                "larger --request-timeout.",
            )
        finally:
            working.cancel()
            hung_up.cancel()
            await asyncio.gather(working, hung_up, return_exceptions=True)
            del working, hung_up  # else an exception keeps this frame, and with it the body, until a full collection

    async def answer(self) -> Reply:
        """Score the parsed call and render the answer."""
        call = self.call
        assert call is not None
        # A probe needs no key, so it loads no model.
        if not self.endpoint.reads and (not call.requests or self.hosted.model.reranker is None):
            return self._render(call, (), False)
        async with self._desk.pool.lend(self.hosted.model) as reranker:
            if self.hosted.served.info is not self._info:  # a classifier's labels, once it is loaded
                call = self.call = await self._read()
            return await self._scored(call, reranker)

    async def _scored(self, call: Call[Any], reranker: Answers) -> Reply:
        results: Sequence[RerankResult] = ()
        if call.requests:
            results = await _score_all(reranker, call)
        self._called.results = results
        outputs = sum(len(document.values) for result in results for document in result.documents)
        if self._large or max(outputs, sum(result.scored for result in results)) > SOON_RENDERED:
            return await self._desk.workers.run(partial(self._render, call, results, True))
        return self._render(call, results, False)

    def _parse(self) -> Call[Any]:
        unpacked = self.endpoint.unpack(self._body, self._incoming.headers, self.hosted.served.limits)
        fields = {**unpacked, **self._incoming.parameters}
        # A null counts as absent: clients that write out every field do not choose an API by it.
        present = {name: value for name, value in fields.items() if value is not None}
        self._claim(present)
        hosted = choose(present.get("model", None if self.endpoint.reads else self._incoming.model), self._desk.hosted)
        if hosted is not self.hosted:
            self.hosted = hosted
            self._claim(present)
        served = hosted.served
        self._info = served.info
        parsed: Call[Any] = self.endpoint.parse(checked(self.endpoint.body, fields, served.limits), served)
        if len(self._desk.hosted) == 1:
            return parsed
        self._called.model = hosted.name
        # Where `model` chooses the model, the field has an effect, in APIs without such a field too.
        return replace(
            parsed, ignored=tuple(name for name in parsed.ignored if name != "model" or not present.get(name))
        )

    def _claim(self, fields: Mapping[str, Any]) -> None:
        self.dialect, self.endpoint = _claiming(self._routed, fields, self._incoming.headers, self.hosted.served)

    def _render(self, call: Call[Any], results: Sequence[Any], large: bool) -> Reply:
        content = self.endpoint.render(call, results, self.id, self.hosted.served)
        return json_reply(content, 200, reports(call, results, self.log_id), large)


def _claiming(
    routed: Sequence[Routed], fields: Mapping[str, Any], headers: Mapping[str, str], served: Served
) -> Routed:
    dialect, _ = next((route for route in routed if route[0].claims(fields, headers)), routed[0])
    of_dialect = [route for route in routed if route[0] is dialect]
    return next((route for route in of_dialect if route[1].claims(fields, served)), of_dialect[0])


async def _score_all(reranker: Answers, call: Call[Any]) -> list[RerankResult]:
    """The results of a call's requests in order. As many requests are scored at a time as fill batches."""
    starts = range(0, len(call.requests), REQUESTS_TOGETHER)
    remaining_starts = iter(starts)
    results: dict[int, list[RerankResult]] = {}

    async def score_next() -> None:
        for start in remaining_starts:
            results[start] = await _score_group(reranker, call, start)

    await all_of(score_next() for _ in starts[:READ_AT_ONCE])
    return [result for start in starts for result in results[start]]


async def _score_group(reranker: Answers, call: Call[Any], start: int) -> list[RerankResult]:
    try:
        return await reranker.answer_all(call.requests[start : start + REQUESTS_TOGETHER])
    except InvalidRequest as error:
        raise InvalidRequest(call.in_body(error.field, start + error.request), error.problem) from error
