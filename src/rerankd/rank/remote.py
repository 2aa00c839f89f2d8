"""Scoring by a server that speaks one of these APIs."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from rerankd.core import Content, InvalidRequest, RerankdError
from rerankd.rank.runs import Ranked
from rerankd.rank.scoring import Block, Found, Piece, Wanted, in_query, marked, pieces
from rerankd.rank.values import is_text, parts, plain_text, sendable

T = TypeVar("T")
log = logging.getLogger("rerankd")
PATIENCE = 300.0
"""Seconds of waiting, after which a server that is busy or not reached is given up."""
LONGEST_WAIT = 30.0
"""Seconds between two tries at most."""
LONGEST_QUIET = 5.0
"""Seconds of waiting, after which the user is told of it."""
BUSY = frozenset({408, 425, 429, 502, 503, 504})
PROBE_SECONDS = 10.0
LARGEST = 3.4e38
"""The largest score: runs hold them as float32."""


class ServerError(RerankdError):
    """A server that cannot be reached, or whose answer is not one of its API's."""


@dataclass(frozen=True, slots=True)
class Api:
    """A rerank API as it is called.

    path: where it usually lies
    documents: what its list of documents is called
    content: a query or document in its body, with the field that errors name
    instruction: what its field for an instruction is called, if it has one
    fields: what else a body holds
    results: the list of scored documents in an answer
    score: what the score is called there
    """

    path: str
    documents: str
    content: Callable[[Content, str], Any]
    results: Callable[[Any], Any]
    score: str
    instruction: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def _parts(content: Content, field: str) -> Any:
    return parts(sendable(content, field))


def _jina(content: Content, field: str) -> Any:
    if is_text(content):
        return plain_text(content, field)
    found: dict[str, Any] = {}
    for part in sendable(content, field):
        kind = {"Text": "text", "Image": "image"}.get(type(part).__name__)
        if kind is None or kind in found:
            raise InvalidRequest(field, "is more than one text and one image, which Jina's API does not take")
        found[kind] = part.text if kind == "text" else part.source  # type: ignore[union-attr]
    return found


QUIET: Mapping[str, Any] = {"return_documents": False}
APIS: Mapping[str, Api] = {
    "vllm": Api(
        "/v1/rerank", "documents", _parts, lambda said: said["results"], "relevance_score", "instruction",
        {**QUIET, "truncate_prompt_tokens": -1},
    ),
    "sglang": Api("/v1/rerank", "documents", _parts, lambda said: said, "score", "instruct", QUIET),
    "cohere": Api("/v2/rerank", "documents", plain_text, lambda said: said["results"], "relevance_score"),
    "tei": Api("/rerank", "texts", plain_text, lambda said: said, "score", None, {"truncate": True}),
    "infinity": Api("/rerank", "documents", plain_text, lambda said: said["results"], "relevance_score", None, QUIET),
    "voyage": Api("/v1/rerank", "documents", plain_text, lambda said: said["data"], "relevance_score", None, QUIET),
    "jina": Api("/v1/rerank", "documents", _jina, lambda said: said["results"], "relevance_score", None, QUIET),
}  # fmt: skip


@dataclass
class _Open:
    """A block whose documents are being scored. `sent`: whether all of them were sent; `waiting` counts requests."""

    block: Block
    found: list[Found]
    sent: bool = False
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """Scores of a request's documents in their order, and whether each was cut."""

    scores: list[float]
    cut: Callable[[int], bool | None]
    query_cut: bool | None
    ignored: frozenset[str]


class RemoteScorer:
    """Sends some requests at a time, each query's documents in as many as it takes.

    A server that is busy or not reached is asked again for some minutes. Raises ServerError for one that is not there.
    """

    block_documents = 1

    def __init__(
        self,
        url: str,
        api: str = "vllm",
        model: str | None = None,
        key: str | None = None,
        concurrency: int = 8,
        request_documents: int = 1000,
        timeout: float = 600.0,
    ) -> None:
        """url: of the server, or with the path of its rerank route; request_documents: the most in one request"""
        if not url.startswith(("http://", "https://")):
            raise ServerError(f"--server: {url!r} is not a URL, such as http://127.0.0.1:8000.")
        self._api = APIS[api]
        self._name = api
        self._concurrency, self._request_documents = concurrency, request_documents
        base = url.rstrip("/")
        self._url = base if urlsplit(base).path.rstrip("/").endswith("rerank") else base + self._api.path
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), limits=limits)
        card = self._card(base.removesuffix(self._api.path)) or self._card(
            "{0.scheme}://{0.netloc}".format(urlsplit(base))
        )
        self.model = model or card.get("id")
        self._stopped, self._warned = threading.Event(), threading.Event()
        self._running = set[Future[tuple[_Open, Piece, _Answer | None]]]()
        self._tells_truncation = card.get("owned_by") == "rerankd"

    @property
    def takes_instruction(self) -> bool:
        """Whether its API has a field for an instruction."""
        return self._api.instruction is not None

    def score(
        self, blocks: Iterable[Block], wanted: Wanted, on_documents: Callable[[int], object]
    ) -> Iterator[tuple[Block, list[Found]]]:
        # Documents are read here, as many as are sent: a database that they lie in is one thread's at a time.
        left = self._pieces(blocks, wanted)
        self._running = set()
        try:
            while True:
                while len(self._running) < self._concurrency and (one := next(left, None)) is not None:
                    self._running.add(_in_thread(partial(self._send, *one)))
                if not self._running:
                    return
                done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    opened, piece, answer = future.result()
                    if answer is not None:
                        _collect(opened.found[piece.query], piece, answer)
                        on_documents(len(piece.ids))
                    opened.waiting -= 1
                    if opened.sent and not opened.waiting:
                        yield opened.block, opened.found
        except BaseException:
            self._stopped.set()
            raise

    def _pieces(self, blocks: Iterable[Block], wanted: Wanted) -> Iterator[tuple[_Open, Piece]]:
        for block in blocks:
            opened = _Open(block, [Found(query, wanted) for query in block.queries])
            every = (
                piece
                for number, query in enumerate(block.queries)
                for piece in pieces(number, query, self._request_documents)
            )
            for piece, opened.sent in marked(every):
                opened.waiting += 1
                yield opened, piece

    def close(self) -> None:
        """Close the connections.

        After an error some may be in use, each by a thread that nobody waits for. A socket that is closed under such a
        thread gives its number to the next one, on which the thread would then wait: these end with their answers.
        """
        if all(one.done() for one in self._running):
            self._client.close()

    def _send(self, opened: _Open, piece: Piece) -> tuple[_Open, Piece, _Answer | None]:
        """None in place of an answer for a query that is left out. Raises InvalidRequest and ServerError."""
        found = opened.found[piece.query]
        if found.error is not None:
            return opened, piece, None
        try:
            return opened, piece, self._asked(found, piece)
        except InvalidRequest as error:
            problem = in_query(error, found.query, piece.start)
            if not found.wanted.skip_bad:
                raise problem from error
            found.error = problem
            return opened, piece, None

    def _asked(self, found: Found, piece: Piece) -> _Answer:
        api, query = self._api, found.query
        contents = [api.content(content, f"documents[{i}]") for i, content in enumerate(piece.contents)]
        body = {**api.fields, "query": api.content(query.content, "query"), api.documents: contents}
        if self.model is not None:
            body["model"] = self.model
        instruction = query.instruction if query.instruction is not None else found.wanted.instruction
        if instruction is not None:
            if api.instruction is None:
                raise InvalidRequest("instruction", f"has no field in the API {self._name}; use --api vllm or sglang")
            body[api.instruction] = instruction
        response = self._answer(body)
        scores, cut = self._scores(response, len(contents))
        query_cut = None
        if self._tells_truncation:
            query_cut = "query" in response.headers.get("X-Rerankd-Truncated", "").split("; ")
        ignored = filter(None, response.headers.get("X-Rerankd-Ignored", "").split(", "))
        return _Answer(scores, cut, query_cut, frozenset(ignored))

    def _answer(self, body: Mapping[str, Any]) -> httpx.Response:
        """Raises InvalidRequest for what the server refuses, ServerError for one that does not answer."""
        waited, tries = 0.0, 0
        while True:
            pause, tries = min(LONGEST_WAIT, 2.0**tries), tries + 1
            try:
                response = self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    self._warned.clear()
                    return response
                problem = f"{response.status_code}: {_message(response)}"
                if response.status_code in (400, 413, 422):
                    raise InvalidRequest("the server", f"answered {problem}")
                if response.status_code not in BUSY:
                    raise ServerError(f"{self._url} answered {problem}.")
                asked = response.headers.get("Retry-After", "")
                pause = min(LONGEST_WAIT, float(asked)) if asked.isdecimal() else pause
            if waited >= PATIENCE or self._stopped.is_set():
                raise ServerError(f"{self._url} does not answer, after {tries} tries in {waited:.0f} s ({problem}).")
            if waited > LONGEST_QUIET and not self._warned.is_set():
                self._warned.set()
                log.warning("%s does not answer (%s); it is asked again for %.0f s", self._url, problem, PATIENCE)
            self._stopped.wait(pause)
            waited += max(pause, 1.0)

    def _scores(self, response: httpx.Response, count: int) -> tuple[list[float], Callable[[int], bool | None]]:
        """The scores in the order of the documents, and whether a document was cut."""
        scores: dict[int, float] = {}
        told: dict[int, bool] = {}
        try:
            for one in self._api.results(response.json()):
                score = float(one[self._api.score])
                if not abs(score) <= LARGEST:
                    raise ValueError(f"the score {score}")
                scores[int(one["index"])] = score
                if "truncated" in (one.get("meta_info") or {}):
                    told[int(one["index"])] = bool(one["meta_info"]["truncated"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"{self._url}: the answer is not one of the API {self._name} ({error!r}).") from None
        if scores.keys() != set(range(count)):
            raise ServerError(f"{self._url}: the answer has {len(scores)} scores for {count} documents.")
        in_order = [scores[index] for index in range(count)]
        if self._tells_truncation:
            return in_order, _truncated(response.headers.get("X-Rerankd-Truncated", ""))
        return in_order, told.get

    def _card(self, base: str) -> dict[str, Any]:
        """The first model that the server names; empty for one that names none."""
        try:
            response = self._client.get(f"{base}/v1/models", timeout=PROBE_SECONDS)
            card = response.json()["data"][0]
        except httpx.ConnectError as error:
            raise ServerError(f"{base} cannot be reached: {error}.") from None
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            return {}
        return card if isinstance(card, dict) else {}


def _collect(found: Found, piece: Piece, answer: _Answer) -> None:
    for index, score in enumerate(answer.scores):
        found.add(Ranked(piece.ids[index], piece.start + index, score, answer.cut(index)))
    if answer.query_cut is not None:
        found.query_truncated = bool(found.query_truncated) or answer.query_cut
    found.ignored |= answer.ignored


def _in_thread(task: Callable[[], T]) -> Future[T]:
    """Run a task in a thread of its own, which does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rerankd-send", daemon=True).start()
    return future


def _truncated(header: str) -> Callable[[int], bool | None]:
    """Which documents a rerankd says were cut, as in `query; documents 0-2, 5`; it says no more than a header holds."""
    listed, more, _ = header.partition("documents ")[2].partition(", and ")
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
        found.update(range(int(first), int(last or first) + 1))
    return lambda index: True if index in found else None if more else False


def _message(response: httpx.Response) -> str:
    text = response.text.strip()
    return text[:500] if text else response.reason_phrase
