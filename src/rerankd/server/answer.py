"""One call from its bytes to its answer, whatever its dialect."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rerankd.core import (
    EngineClosed,
    EngineError,
    InvalidRequest,
    LabelRequest,
    LabelResult,
    RerankRequest,
    RerankResult,
)
from rerankd.server.body import read_json
from rerankd.server.calls import Called
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.problems import Problem, checked

log = logging.getLogger("rerankd")

HEADER_LIMIT = 2000
SHUTTING_DOWN = Problem(503, "The server is shutting down; send the request again.")
OVERLOADED = Problem(429, "The server answers as many calls already as it takes at a time; send this one again later.")
RETRY_AFTER = 1
"""Seconds. Nobody is promised a place then; it keeps clients from calling again at once."""
T = TypeVar("T")
Routed: TypeAlias = tuple[Dialect, Endpoint[Any]]


class Answers(Protocol):
    """What the server needs of a `Reranker`."""

    async def answer(self, request: RerankRequest) -> RerankResult:
        """Score a request; cancelling the awaiting task drops what still waits."""
        ...

    async def label(self, request: LabelRequest) -> LabelResult:
        """Find how probable labels are; cancelling as for `answer`."""
        ...


class Gone(Exception):
    """The client hung up before its answer was there."""


async def answer(
    request: Request, routed: Sequence[Routed], reranker: Answers, served: Served, max_body: int
) -> Response:
    """Read, parse, score and render one call; whatever goes wrong is an error in the dialect's shape.

    routed: what the path may mean; the first that claims the call answers it, else the first of all
    """
    dialect, endpoint = routed[0]
    called: Called = request.state.called
    id = f"{endpoint.id_prefix}{called.id}"
    call: Call[Any] | None = None
    try:
        dialect, endpoint = _claiming(routed, {}, request)
        sent = await read_json(request, max_body) if endpoint.reads else {}
        # A null is as good as nothing: clients that write out every field say no API's name with it.
        dialect, endpoint = _claiming(routed, {name: one for name, one in sent.items() if one is not None}, request)
        call = endpoint.parse(checked(endpoint.body, sent), served)
        if call.id and not request.headers.get("x-request-id"):
            called.rename(call.id)
        id = f"{endpoint.id_prefix}{called.id}"
        results: list[RerankResult] = []
        if call.requests:
            called.results = results = await _while_connected(request, _all(reranker, call))
            content = endpoint.render(call, results, id, served)
        elif call.labels is not None:
            labelled = await _while_connected(request, reranker.label(call.labels))
            called.results = [labelled]
            content = endpoint.render(call, [labelled], id, served)
        else:
            content = await asyncio.to_thread(endpoint.render, call, results, id, served)
        return json_response(content, 200, _reports(call, results, id))
    except (Gone, ClientDisconnect):
        log.info("%r: the client hung up", id)
        return Response(status_code=499)
    except asyncio.CancelledError:  # nothing but the end of the server's patience cancels a call
        return refusal(dialect, SHUTTING_DOWN)
    except Problem as problem:
        return refusal(dialect, problem)
    except InvalidRequest as error:
        field = call.word(error.field) if call else error.field
        return refusal(dialect, Problem(400, error.problem, field, well_formed=True))
    except EngineClosed:
        return refusal(dialect, SHUTTING_DOWN)
    except EngineError as error:
        return refusal(dialect, Problem(500, str(error)))
    except Exception:
        log.exception("%r failed", id)
        return refusal(dialect, Problem(500, f"The server failed on this request; its log says why, under {id}."))
    finally:
        called.dialect = dialect.name


def overloaded(request: Request, routed: Sequence[Routed]) -> Response:
    """The answer to a call that there is no room for, in the words of the API that it seems to be."""
    dialect, _ = _claiming(routed, {}, request)
    request.state.called.dialect = dialect.name
    response = refusal(dialect, OVERLOADED)
    response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def refusal(dialect: Dialect, problem: Problem) -> Response:
    """A problem in a dialect's shape."""
    return json_response(dialect.render_error(problem), dialect.status(problem))


def json_response(content: object, status: int, headers: dict[str, str] | None = None) -> Response:
    """JSON as it goes over the wire; nothing at all for None."""
    if content is None:
        return Response(status_code=status, headers=headers)
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


def _claiming(routed: Sequence[Routed], sent: Mapping[str, Any], request: Request) -> Routed:
    dialect, _ = next((one for one in routed if one[0].claims(sent, request.headers)), routed[0])
    own = [one for one in routed if one[0] is dialect]
    return next((one for one in own if one[1].claims(sent)), own[0])


async def _all(reranker: Answers, call: Call[Any]) -> list[RerankResult]:
    tasks = [asyncio.ensure_future(_one(reranker, call, number)) for number in range(len(call.requests))]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _one(reranker: Answers, call: Call[Any], number: int) -> RerankResult:
    try:
        return await reranker.answer(call.requests[number])
    except InvalidRequest as error:
        raise InvalidRequest(call.in_body(error.field, number), error.problem) from error


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it and raise Gone when the client hangs up first."""
    working, hung_up = asyncio.ensure_future(work), asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((working, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        working.cancel()
        hung_up.cancel()
        await asyncio.gather(working, hung_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reports(call: Call[Any], results: Sequence[RerankResult], id: str) -> dict[str, str]:
    """Headers that say what was cut to fit, what was left out and which fields had no effect, or less than asked."""
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
    return headers


def _truncated(call: Call[Any], results: Sequence[RerankResult]) -> Iterable[str]:
    for number, result in enumerate(results):
        if result.query_truncated:
            yield call.in_body("query", number)
    places = {call.place(number, index) for number, result in enumerate(results) for index in result.truncated}
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
