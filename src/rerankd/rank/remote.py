"""Scoring by a server, through one of several rerank APIs."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from rerankd.core import InvalidRequest, RerankdError
from rerankd.core.counts import counted
from rerankd.rank.apis import APIS
from rerankd.rank.runs import Ranked
from rerankd.rank.scoring import Block, Piece, QueryScores, RankSettings, in_query, mark_last, pieces

T = TypeVar("T")
log = logging.getLogger("rerankd")
PATIENCE = 300.0
"""Seconds of waiting for a busy or unreachable server before a request fails."""
LONGEST_WAIT = 30.0
"""Most seconds between two attempts."""
WARN_AFTER = 5.0
"""Seconds of waiting before a warning is logged."""
BUSY = frozenset({408, 425, 429, 502, 503, 504})
"""HTTP statuses after which the same request is sent again."""
PROBE_SECONDS = 10.0
"""Timeout of the request for the server's models."""
LARGEST_SCORE = 3.4e38
"""Largest absolute score that is accepted, because readers of TREC runs hold scores as float32."""


class ServerError(RerankdError):
    """A server cannot be reached, refuses the request, or answers with a body that its API does not have."""


@dataclass
class _OpenBlock:
    """A block whose documents are being scored.

    sent: whether all its requests were sent
    waiting: number of requests without an answer
    """

    block: Block
    scores: list[QueryScores]
    sent: bool = False
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """A server's answer to the request of a piece.

    scores: of the documents by their index in the piece, without those that failed
    truncated: whether each of these documents was cut to fit, in the same order; None if the server does not say
    query_truncated: the same for the query
    ignored: parameters of the request that the server ignored, or applied only in part
    failed: by index in the piece, why a document was left out
    """

    scores: dict[int, float]
    truncated: list[bool | None]
    query_truncated: bool | None
    ignored: frozenset[str]
    failed: dict[int, InvalidRequest]


class RemoteScorer:
    """Scores documents through a server, with several concurrent requests.

    The documents of a query are sent in one request or several. A request to a busy or unreachable server is repeated
    for PATIENCE seconds. Raises ServerError if nothing listens at the URL at the start.
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
        """url: of the server, or of its rerank route

        api: a key of APIS
        model: name of the model in requests; None is the first model that the server lists
        key: API key, sent as a bearer token
        concurrency: most concurrent requests
        request_documents: most documents in one request
        timeout: seconds of one request
        """
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
        self._running = set[Future[tuple[_OpenBlock, Piece, _Answer | None]]]()
        self._tells_truncation = card.get("owned_by") == "rerankd"

    @property
    def takes_instruction(self) -> bool:
        """Whether the API has a field for an instruction."""
        return self._api.instruction is not None

    def score(
        self, blocks: Iterable[Block], settings: RankSettings, on_documents: Callable[[int], object]
    ) -> Iterator[tuple[Block, list[QueryScores]]]:
        # This thread alone reads the documents, just before they are sent, because they may come from a database
        # whose connection must not be used by two threads at once.
        unsent = self._pieces(blocks, settings)
        self._running = set()
        try:
            while True:
                while len(self._running) < self._concurrency and (request := next(unsent, None)) is not None:
                    self._running.add(_in_thread(partial(self._send, *request)))
                if not self._running:
                    return
                done, self._running = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    opened, piece, answer = future.result()
                    if answer is not None:
                        _collect(opened.scores[piece.query], piece, answer)
                        on_documents(len(piece.ids))
                    opened.waiting -= 1
                    if opened.sent and not opened.waiting:
                        yield opened.block, opened.scores
        except BaseException:
            self._stopped.set()
            raise

    def _pieces(self, blocks: Iterable[Block], settings: RankSettings) -> Iterator[tuple[_OpenBlock, Piece]]:
        for block in blocks:
            opened = _OpenBlock(block, [QueryScores(query, settings) for query in block.queries])
            requests = (
                piece
                for number, query in enumerate(block.queries)
                for piece in pieces(number, query, self._request_documents)
            )
            for piece, opened.sent in mark_last(requests):
                opened.waiting += 1
                yield opened, piece

    def close(self) -> None:
        """Close the connections.

        After an error, threads that nobody waits for may still use some connections. Closing a socket under such a
        thread would free the socket's file descriptor, and the thread would then read from whichever socket gets that
        descriptor next. These connections stay open until their answers arrive.
        """
        if all(request.done() for request in self._running):
            self._client.close()

    def _send(self, opened: _OpenBlock, piece: Piece) -> tuple[_OpenBlock, Piece, _Answer | None]:
        """Send a piece. The answer is None if its query is left out. Raises InvalidRequest and ServerError."""
        scores = opened.scores[piece.query]
        if scores.error is not None:
            return opened, piece, None
        try:
            return opened, piece, self._request(scores, piece)
        except InvalidRequest as error:
            problem = in_query(error, scores.query, piece.start)
            if not scores.settings.skip_bad:
                raise problem from error
            scores.error = InvalidRequest(problem.field, f"{problem.problem}; the whole query is left out")
            return opened, piece, None

    def _request(self, scores: QueryScores, piece: Piece) -> _Answer:
        api, query, skip = self._api, scores.query, scores.settings.skip_bad
        body = {**api.fields, "query": api.content(query.content, "query")}
        if self.model is not None:
            body["model"] = self.model
        instruction = query.instruction if query.instruction is not None else scores.settings.instruction
        if instruction is not None:
            if api.instruction is None:
                raise InvalidRequest("instruction", f"has no field in the API {self._name}; use --api vllm or sglang")
            body[api.instruction] = instruction
        contents: dict[int, Any] = {}
        failed: dict[int, InvalidRequest] = {}
        for place, content in enumerate(piece.contents):
            try:
                contents[place] = api.content(content, f"documents[{place}]")
            except InvalidRequest as error:
                if not skip:
                    raise
                failed[place] = error
        response = None
        while contents and response is None:
            try:
                response = self._answer({**body, api.documents: list(contents.values())})
            except InvalidRequest as error:
                # A document that the server names is left out alone, and the others are sent again.
                named = re.search(rf"\b{api.documents}\[(\d+)\]", error.problem)
                if not skip or named is None or int(named[1]) >= len(contents):
                    raise
                place = list(contents)[int(named[1])]
                problem = error.problem.replace(named[0], f"{api.documents}[{piece.start + place}]")
                failed[place] = InvalidRequest(f"documents[{place}]", f"is refused: the server {problem}")
                del contents[place]
        if response is None:
            return _Answer({}, [], None, frozenset(), failed)
        values, truncated = self._scores(response, len(contents))
        query_truncated = None
        if self._tells_truncation:
            query_truncated = "query" in response.headers.get("X-Rerankd-Truncated", "").split("; ")
        ignored = filter(None, response.headers.get("X-Rerankd-Ignored", "").split(", "))
        cut = [truncated(index) for index in range(len(contents))]
        return _Answer(dict(zip(contents, values, strict=True)), cut, query_truncated, frozenset(ignored), failed)

    def _answer(self, body: Mapping[str, Any]) -> httpx.Response:
        """Send a request until the server answers it. Raises InvalidRequest for a refused request, else ServerError."""
        waited, attempts = 0.0, 0
        while True:
            pause, attempts = min(LONGEST_WAIT, 2.0**attempts), attempts + 1
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
                retry_after = response.headers.get("Retry-After", "")
                pause = min(LONGEST_WAIT, float(retry_after)) if retry_after.isdecimal() else pause
            if waited >= PATIENCE or self._stopped.is_set():
                raise ServerError(f"{self._url} did not answer {attempts} attempts in {waited:.0f} s ({problem}).")
            if waited > WARN_AFTER and not self._warned.is_set():
                self._warned.set()
                log.warning("%s does not answer (%s); retrying for up to %.0f s", self._url, problem, PATIENCE)
            self._stopped.wait(pause)
            waited += max(pause, 1.0)

    def _scores(self, response: httpx.Response, count: int) -> tuple[list[float], Callable[[int], bool | None]]:
        """The scores in the order of the documents, and a function that says whether a document was cut to fit."""
        scores: dict[int, float] = {}
        truncated: dict[int, bool] = {}
        try:
            for result in self._api.results(response.json()):
                score = float(result[self._api.score])
                if not abs(score) <= LARGEST_SCORE:
                    raise ServerError(f"{self._url}: the answer has the score {score}.")
                scores[int(result["index"])] = score
                if "truncated" in (result.get("meta_info") or {}):
                    truncated[int(result["index"])] = bool(result["meta_info"]["truncated"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerError(
                f"{self._url}: the answer does not have the form of the API {self._name}. Name the server's API "
                f"(--api); a rerankd server has each API below its name, as in http://HOST:PORT/{self._name}."
            ) from None
        if scores.keys() != set(range(count)):
            raise ServerError(
                f"{self._url}: the answer has {counted(len(scores), 'score')} for {counted(count, 'document')}."
            )
        in_order = [scores[index] for index in range(count)]
        if self._tells_truncation:
            return in_order, _truncated(response.headers.get("X-Rerankd-Truncated", ""))
        return in_order, truncated.get

    def _card(self, base: str) -> dict[str, Any]:
        """The first entry of the server's list of models; empty if the server has no such list. Raises ServerError."""
        try:
            response = self._client.get(f"{base}/v1/models", timeout=PROBE_SECONDS)
            card = response.json()["data"][0]
        except httpx.ConnectError as error:
            raise ServerError(f"{base} cannot be reached: {error}.") from None
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            return {}
        return card if isinstance(card, dict) else {}


def _collect(scores: QueryScores, piece: Piece, answer: _Answer) -> None:
    for (index, score), truncated in zip(answer.scores.items(), answer.truncated, strict=True):
        scores.add(Ranked(piece.ids[index], piece.start + index, score, truncated))
    for index, error in sorted(answer.failed.items()):
        scores.failed[piece.ids[index]] = str(in_query(error, scores.query, piece.start))
    if answer.query_truncated is not None:
        scores.query_truncated = bool(scores.query_truncated) or answer.query_truncated
    scores.ignored |= answer.ignored


def _in_thread(task: Callable[[], T]) -> Future[T]:
    """Run a task in a new daemon thread, so that a stuck request does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="rerankd-send", daemon=True).start()
    return future


def _truncated(header: str) -> Callable[[int], bool | None]:
    """Whether the document at an index was cut to fit, from rerankd's header, such as `query; documents 0-2, 5`.

    A long list ends in `, and N more`, and documents that are not listed may then be cut too: the function returns
    None for them.
    """
    listed, unlisted, _ = header.partition("documents ")[2].partition(", and ")
    truncated: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
        truncated.update(range(int(first), int(last or first) + 1))
    return lambda index: True if index in truncated else None if unlisted else False


def _message(response: httpx.Response) -> str:
    text = response.text.strip()
    return text[:500] if text else response.reason_phrase
