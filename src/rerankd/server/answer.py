"""One call from its bytes to its answer, whatever its dialect."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rerankd.core import (
    EngineBusy,
    EngineClosed,
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    RerankRequest,
    RerankResult,
    seconds_by_stage,
)
from rerankd.server.body import LARGE, Bodies, encode_json, parse_json
from rerankd.server.calls import Called
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.places import Places
from rerankd.server.problems import Problem, checked
from rerankd.work import Workers, all_of

log = logging.getLogger("rerankd")

HEADER_LIMIT = 2000
REQUESTS_TOGETHER = 64
"""Requests of one call, each of one query, that a thread reads one after another."""
READ_AT_ONCE = 4
"""How often so many wait for the engine at the same time."""
SOON_RENDERED = 1000
"""Documents whose answer the event loop renders by itself; that of more takes it tens of milliseconds."""
ENGINE_DEAD = Problem(503, "The engine has failed and the server ends; send the request again.")
SHUTTING_DOWN = Problem(503, "The server is shutting down; send the request again.")
T = TypeVar("T")
Routed: TypeAlias = tuple[Dialect, Endpoint[Any]]


class Answers(Protocol):
    """What the server needs of a `Reranker`."""

    async def answer_all(self, requests: Sequence[RerankRequest]) -> list[RerankResult]:
        """Score requests; cancelling the awaiting task drops what still waits."""
        ...


class Gone(Exception):
    """The client hung up before its answer was there."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What calls are answered with.

    places: of calls that are answered at a time
    workers: threads for what would hold up the event loop
    timeout: seconds from a call's body to its answer; None for any time
    """

    reranker: Answers
    served: Served
    bodies: Bodies
    places: Places
    workers: Workers
    timeout: float | None = None


async def answer(request: Request, routed: Sequence[Routed], desk: Desk) -> Response:
    """Read, parse, score and render one call; whatever goes wrong is an error in the dialect's shape.

    routed: what the path may mean; the first that claims the call answers it, else the first of all
    """
    called: Called = request.state.called
    exchange = _Exchange(request, routed, desk)
    try:
        if not exchange.endpoint.reads:
            await exchange.parse(b"{}")
            return await exchange.in_time(exchange.answer())
        # What is refused costs nothing: its body is not read.
        if unready := desk.served.unready():
            raise unready
        desk.places.check()
        async with desk.bodies.read(request) as body:
            with desk.places.take():
                await exchange.parse(body)
                return await exchange.in_time(exchange.answer())
    except (Gone, ClientDisconnect):
        log.info("%r: the client hung up", exchange.log_id)
        return Response(status_code=499)
    except asyncio.CancelledError:  # nothing but the end of the server's patience cancels a call
        return exchange.refusal(SHUTTING_DOWN)
    except Problem as problem:
        return exchange.refusal(problem)
    except InvalidRequest as error:
        field = exchange.call.word(error.field) if exchange.call else error.field
        return exchange.refusal(Problem(400, error.problem, field, well_formed=True))
    except EngineDead:
        return exchange.refusal(ENGINE_DEAD)
    except EngineClosed:
        return exchange.refusal(SHUTTING_DOWN)
    except EngineBusy as error:
        return exchange.refusal(desk.places.full(str(error)))
    except OutOfMemory as error:
        log.error("%r: %s", exchange.log_id, error)
        return exchange.refusal(Problem(500, str(error)))
    except Exception:
        log.exception("%r failed", exchange.log_id)
        return exchange.refusal(
            Problem(500, f"The server failed on this request; its log says why, under {exchange.log_id}.")
        )
    finally:
        called.dialect = exchange.dialect.name


class _Exchange:
    """One call on its way to its answer. What takes long of it is done by workers."""

    def __init__(self, request: Request, routed: Sequence[Routed], desk: Desk) -> None:
        self.request = request
        self.dialect, self.endpoint = _claiming(routed, {}, request)
        self.call: Call[Any] | None = None
        self._large = False
        self._began = 0.0
        self._routed = routed
        self._desk = desk
        self._called: Called = request.state.called

    @property
    def id(self) -> str:
        return f"{self.endpoint.id_prefix}{self._called.id}"

    @property
    def log_id(self) -> str:
        """The id, no longer than a log line should have it."""
        return f"{self.endpoint.id_prefix}{self._called.header_id()}"

    def refusal(self, problem: Problem) -> Response:
        return refusal(self.dialect, problem)

    async def parse(self, body: bytes | bytearray) -> None:
        """Find out what the call asks for, and name it as it asks to be named. Its time begins now."""
        self._began = time.monotonic()
        parse = partial(self._parse, body)
        self._large = len(body) > LARGE
        if self._large:
            self.call = await self.in_time(self._desk.workers.run(parse))
        else:
            self.call = parse()
        if self.call.id and not self.request.headers.get("x-request-id"):
            self._called.rename(self.call.id)

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`. It is cancelled when the client hangs up first (Gone), or when it is late (a 504 `Problem`)."""
        timeout = self._desk.timeout
        left = None if timeout is None else max(self._began + timeout - time.monotonic(), 0)
        working, hung_up = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(self.request))
        try:
            await asyncio.wait((working, hung_up), timeout=left, return_when=asyncio.FIRST_COMPLETED)
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

    async def answer(self) -> Response:
        """Do what the call asks for, once it is parsed."""
        call = self.call
        assert call is not None
        results: Sequence[RerankResult] = ()
        if call.requests:
            results = await _all(self._desk.reranker, call)
        self._called.results = results
        if self._large or sum(result.scored for result in results) > SOON_RENDERED:
            return await self._desk.workers.run(partial(self._render, call, results, True))
        return self._render(call, results, False)

    def _parse(self, body: bytes | bytearray) -> Call[Any]:
        served = self._desk.served
        sent = parse_json(body, served.limits)
        # A null is as good as nothing: clients that write out every field say no API's name with it.
        said = {name: one for name, one in sent.items() if one is not None}
        self.dialect, self.endpoint = _claiming(self._routed, said, self.request)
        parsed: Call[Any] = self.endpoint.parse(checked(self.endpoint.body, sent, served.limits), served)
        return parsed

    def _render(self, call: Call[Any], results: Sequence[Any], large: bool) -> Response:
        content = self.endpoint.render(call, results, self.id, self._desk.served)
        return json_response(content, 200, _reports(call, results, self.log_id), large)


def refusal(dialect: Dialect, problem: Problem) -> Response:
    """A problem in a dialect's shape."""
    response = json_response(dialect.render_error(problem), dialect.status(problem))
    if problem.status in (429, 503):
        response.headers["Retry-After"] = str(problem.retry_after)
    if problem.status in (408, 503):
        response.headers["Connection"] = "close"
    return response


def json_response(content: object, status: int, headers: dict[str, str] | None = None, large: bool = False) -> Response:
    """JSON as it goes over the wire; nothing at all for None. `large` as `encode_json` has it."""
    if content is None:
        return Response(status_code=status, headers=headers)
    return Response(encode_json(content, large), status, headers, "application/json")


def _claiming(routed: Sequence[Routed], sent: Mapping[str, Any], request: Request) -> Routed:
    dialect, _ = next((one for one in routed if one[0].claims(sent, request.headers)), routed[0])
    own = [one for one in routed if one[0] is dialect]
    return next((one for one in own if one[1].claims(sent)), own[0])


async def _all(reranker: Answers, call: Call[Any]) -> list[RerankResult]:
    """The results of a call's requests in order, so many of them at a time that batches are full."""
    starts = range(0, len(call.requests), REQUESTS_TOGETHER)
    left = iter(starts)
    results: dict[int, list[RerankResult]] = {}

    async def some() -> None:
        for start in left:
            results[start] = await _some(reranker, call, start)

    await all_of(some() for _ in starts[:READ_AT_ONCE])
    return [result for start in starts for result in results[start]]


async def _some(reranker: Answers, call: Call[Any], start: int) -> list[RerankResult]:
    try:
        return await reranker.answer_all(call.requests[start : start + REQUESTS_TOGETHER])
    except InvalidRequest as error:
        raise InvalidRequest(call.in_body(error.field, start + error.request), error.problem) from error


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reports(call: Call[Any], results: Sequence[RerankResult], id: str) -> dict[str, str]:
    """Headers that say what was cut or left out, which fields had no effect or less than asked, and what took long."""
    headers = {}
    ignored = [*call.ignored, *dict.fromkeys(call.word(name) for result in results for name in result.ignored)]
    if ignored:
        headers["X-Rerankd-Ignored"] = _listed(ignored)
        log.info("%r: no effect here, or less than asked: %s", id, headers["X-Rerankd-Ignored"])
    if cut := list(_truncated(call, results)):
        headers["X-Rerankd-Truncated"] = "; ".join(cut)
        log.info("%r: cut to fit: %s", id, headers["X-Rerankd-Truncated"])
    if failed := list(_failed(call, results)):
        headers["X-Rerankd-Failed"] = _listed(failed)
        log.info("%r: left out: %s", id, headers["X-Rerankd-Failed"])
    if below := list(_below(call, results)):
        headers["X-Rerankd-Below-Min-Score"] = below[0]
        log.info("%r: below the lowest score that is wanted: %s", id, below[0])
    if took := seconds_by_stage(stage for result in results for stage in result.stages):
        headers["Server-Timing"] = ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in took.items())
    return headers


def _truncated(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    for number, result in enumerate(results):
        if result.query_truncated:
            yield call.in_body("query", number)
    places = {call.place(number, index) for number, result in enumerate(results) for index in result.truncated}
    if places:
        yield f"documents {_listed(_ranges(sorted(places)))}"


def _below(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    places = {call.place(number, index) for number, result in enumerate(results) for index in result.below_min_score}
    if places:
        yield f"documents {_listed(_ranges(sorted(places)))}"


def _failed(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    for number, result in enumerate(results):
        for _, error in sorted(result.failed.items()):
            yield f"{call.word(call.in_body(error.field, number))}: {error.problem}"


def _ranges(numbers: Sequence[int]) -> list[str]:
    """[0, 1, 2, 5] as ["0-2", "5"]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ["-".join(map(str, run)) for run in runs]


def _listed(items: Sequence[str]) -> str:
    """Items as a header's value: in ASCII, and no longer than a proxy passes on."""
    text = ""
    for place, item in enumerate(items):
        printable = item if re.fullmatch(r"[\w.\[\]-]+", item, re.ASCII) else json.dumps(item)
        if len(text) + len(printable) > HEADER_LIMIT:
            return f"{text}, and {len(items) - place} more".removeprefix(", ")
        text += f"{', ' if text else ''}{printable}"
    return text
