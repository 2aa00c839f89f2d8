"""The Python face: load a model, then `rerank` and `score`, blocking or async."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from tqdm.auto import tqdm

from rerankd.arguments import by_query, queries_with_documents, requested, scores_in_place
from rerankd.contents import ContentLike
from rerankd.core import (
    Chunking,
    EngineDead,
    EngineLoad,
    InvalidRequest,
    Labels,
    OnError,
    PromptBuilder,
    PromptGroup,
    RerankRequest,
    RerankResult,
    Stage,
    Text,
    Tokens,
    Truncation,
    Visuals,
)
from rerankd.engine.engine import Engine
from rerankd.limits import RequestLimits
from rerankd.loading import plan
from rerankd.models.heads import TokenHead
from rerankd.options import LoadOptions
from rerankd.prompts.limits import too_many_characters
from rerankd.ranking import Submitted, rank
from rerankd.work import Workers, all_of, bounded, leaving_out

if TYPE_CHECKING:
    from pandas import DataFrame

    from rerankd.media.loader import LoadedMedia


PROGRESS_FROM = 256
"""A blocking call with this many documents or more shows a progress bar, unless it says otherwise."""
SOON_RANKED = 1000
"""Logits that an event loop makes a result of by itself; of more a thread does."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose prompts are built, for `submit_together`. `media` is held until the request is answered."""

    request: RerankRequest
    group: PromptGroup
    places: tuple[int, ...]
    failed: Mapping[int, InvalidRequest]
    media: LoadedMedia | None
    stages: list[Stage]


class Reranker:
    """A loaded model and its engine. Every method may be called from any thread; close it, or use `with`.

    >>> with Reranker("BAAI/bge-reranker-v2-m3") as reranker:
    ...     best = reranker.rerank("what is panda?", ["hi", "The giant panda is a bear."]).documents[0]

    Raises ModelError where the model cannot be found, read or served.
    """

    def __init__(self, model: str | Path | LoadOptions, **options: Any) -> None:
        """model: a folder, a hub id, or all options at once; `options` are the fields of `LoadOptions`."""
        chosen = replace(model, **options) if isinstance(model, LoadOptions) else LoadOptions(str(model), **options)
        planned = plan(chosen)
        self.info = planned.info()
        self._prompts, self._load_prompts = planned.prompts, planned.load_prompts
        loaded = planned.load()
        self._activation = loaded.head.activation
        self._media = planned.media_loader()
        self._engine = Engine(
            loaded,
            planned.placement.device,
            chosen.max_batch_tokens or planned.placement.batch_tokens,
            chosen.engine_timeout,
            planned.placement.in_flight,
            chosen.max_queued_tokens,
        )
        vocabulary = loaded.head.vocabulary if isinstance(loaded.head, TokenHead) else None
        self._verbatim = None if vocabulary is None else self._prompts.verbatim(vocabulary.size, self.info.sees)
        self._limits = chosen.request_limits
        self._workers = Workers("rerankd-request")
        self._warm_up()

    def prompts(self, chat_template: str | Path) -> PromptBuilder:
        """The prompts of a Jinja file or text in place of the loaded ones, for `submit`. Raises ModelError."""
        return self._load_prompts(chat_template=chat_template)

    def tokenize(self, text: str, special: bool = True) -> list[tuple[int, str]]:
        """A text's tokens as ids and strings, as the model's own tokenizer has them.

        special: whether the tokens that begin and end a prompt are added

        Raises InvalidRequest for a text of too many characters.
        """
        if len(text) > self._prompts.max_characters:
            raise too_many_characters("text", len(text), self._prompts.max_characters)
        # A batch, since `encode` lets no other thread run.
        (encoding,) = self._prompts.tokenizer.tokenizer.encode_batch([text], add_special_tokens=special)
        return list(zip(encoding.ids, encoding.tokens, strict=True))

    def load(self) -> EngineLoad:
        """How busy the engine is, and what it has done since the start."""
        return self._engine.load()

    @property
    def failure(self) -> EngineDead | None:
        """Why no request is answered any more; None while requests are."""
        return self._engine.failure

    def submit(
        self,
        request: RerankRequest,
        on_progress: Callable[[int], object] | None = None,
        prompts: PromptBuilder | None = None,
    ) -> Submitted:
        """Tokenise a request and queue it; `collect` waits for it. Raises InvalidRequest.

        on_progress: called from the engine's thread with the number of documents just scored
        prompts: in place of the loaded ones
        """
        return self._enqueue(request, self._load_blocking(request), on_progress, prompts)

    def prepare(self, request: RerankRequest) -> Prepared:
        """Tokenise a request without queueing it, for `submit_together`. Raises InvalidRequest."""
        return self._prepare(request, self._load_blocking(request))

    def submit_together(
        self, prepared: Sequence[Prepared], on_progress: Callable[[int], object] | None = None
    ) -> list[Submitted]:
        """Queue several requests at once, for `collect`.

        Where nothing else waits, the same requests are computed in the same batches each time, so to the last digit.
        """
        with self._engine.held():
            return [self._queue(one, on_progress) for one in prepared]

    def collect(self, submitted: Submitted) -> RerankResult:
        """Wait for a submitted request and rank its documents. Raises EngineError, EngineClosed, EngineDead."""
        return self._rank(submitted, submitted.logits.result())

    async def answer(self, request: RerankRequest) -> RerankResult:
        """Score a request without blocking the event loop.

        Cancelling the awaiting task drops the documents that still wait, and ends the reading of the others.
        """
        return (await self.answer_all([request]))[0]

    async def answer_all(self, requests: Sequence[RerankRequest]) -> list[RerankResult]:
        """`answer` of several requests, in order; all of them are read by one thread, since handing over is dear.

        Raises InvalidRequest for the first that cannot be answered, with its place as `request`.
        """
        loaded = await all_of(self._load(request, number) for number, request in enumerate(requests))
        size = sum(map(_characters, requests))
        submitted = await self._workers.run(partial(self._enqueue_all, requests, loaded), _drop_all, size)
        logits = await all_of(asyncio.wrap_future(one.logits) for one in submitted)
        if sum(map(len, logits)) <= SOON_RANKED:
            return self._rank_all(submitted, logits)
        return await self._workers.run(partial(self._rank_all, submitted, logits))

    async def _load(self, request: RerankRequest, number: int) -> tuple[LoadedMedia | None, list[Stage]]:
        """A request's media, and the stage that it took; InvalidRequest with the request's place."""
        if self._media is None:
            return None, []
        began = perf_counter()
        try:
            media = await self._media.load(request, skip_bad_documents=request.on_error == "skip")
        except InvalidRequest as error:
            raise InvalidRequest(error.field, error.problem, number) from error
        return media, [Stage("media", began, perf_counter() - began)]

    def _enqueue_all(
        self, requests: Sequence[RerankRequest], loaded: Sequence[tuple[LoadedMedia | None, list[Stage]]]
    ) -> list[Submitted]:
        submitted: list[Submitted] = []
        try:
            for request, (media, stages) in zip(requests, loaded, strict=True):
                submitted.append(self._enqueue(request, media, stages=stages))
        except InvalidRequest as error:
            _drop_all(submitted)
            raise InvalidRequest(error.field, error.problem, len(submitted)) from error
        except BaseException:
            _drop_all(submitted)
            raise
        return submitted

    # mypy: a string is a sequence of strings too; the first form that fits is taken.
    @overload
    def rerank(  # type: ignore[overload-overlap]
        self,
        query: ContentLike,
        documents: Sequence[ContentLike],
        instruction: str | None = None,
        top_n: int | None = None,
        *,
        truncation: Truncation = ...,
        chunking: Chunking | None = None,
        activation: bool = True,
        on_error: OnError = "fail",
        min_score: float | None = None,
        show_progress: bool | None = None,
    ) -> RerankResult: ...

    @overload
    def rerank(
        self,
        query: Sequence[ContentLike],
        documents: Sequence[ContentLike] | Sequence[Sequence[ContentLike]],
        instruction: str | None = None,
        top_n: int | None = None,
        *,
        truncation: Truncation = ...,
        chunking: Chunking | None = None,
        activation: bool = True,
        on_error: OnError = "fail",
        min_score: float | None = None,
        show_progress: bool | None = None,
    ) -> list[RerankResult]: ...

    def rerank(
        self,
        query: ContentLike | Sequence[ContentLike],
        documents: Sequence[ContentLike] | Sequence[Sequence[ContentLike]],
        instruction: str | None = None,
        top_n: int | None = None,
        *,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
        on_error: OnError = "fail",
        min_score: float | None = None,
        show_progress: bool | None = None,
    ) -> RerankResult | list[RerankResult]:
        """Score every document against the query, best first.

        query: one, or a list of queries, which gives a list of results
        documents: a list for all queries, or one list of them for each
        chunking: to split documents that do not fit, and score each by its best chunk, instead of cutting them
        activation: False for logits instead of scores
        on_error: "skip" to leave out documents that cannot be read, and report them in `failed`
        min_score: to leave out documents of a lower score, and report them in `below_min_score`
        show_progress: None for a bar from PROGRESS_FROM documents on

        Raises InvalidRequest (a ValueError) for a request that cannot be answered as it stands; of several queries with
        its place as `request`.
        """
        several = queries_with_documents(query, documents)
        asked: Any = [(query, documents)] if several is None else several
        requests = []
        for place, (one, own) in enumerate(asked):
            try:
                requests.append(
                    requested(
                        one, own, instruction, top_n, truncation, chunking, activation, on_error, min_score=min_score
                    )
                )
            except InvalidRequest as error:
                raise _of_query(error, place, several) from error
        with _progress(sum(len(request.documents) for request in requests), show_progress) as advance:
            submitted: list[Submitted] = []
            try:
                for request in requests:
                    submitted.append(self.submit(request, advance))
            except InvalidRequest as error:
                _drop_all(submitted)
                raise _of_query(error, len(submitted), several) from error
            results = [self.collect(one) for one in submitted]
        return results[0] if several is None else results

    def rank_frame(
        self,
        frame: DataFrame,
        query: ContentLike | None = None,
        *,
        query_column: str = "query",
        document_column: str = "document",
        instruction: str | None = None,
        top_n: int | None = None,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
        min_score: float | None = None,
        show_progress: bool | None = None,
    ) -> DataFrame:
        """The rows of a pandas frame best first, each query's together, with columns `score`, `rank` and `truncated`.

        query: what all rows are scored against; None for each row's own, in `query_column`
        top_n, min_score: of each query

        Queries stand in the order that they first come in. Rows keep their index and other columns; a column of one of
        these names is replaced. Raises InvalidRequest for a column that is missing, and for a cell that is no content.
        """
        wanted = [document_column] if query is not None else [query_column, document_column]
        for column in wanted:
            if column not in frame.columns:
                listed = ", ".join(map(str, frame.columns))
                raise InvalidRequest(column, f"is no column of the frame, which has {listed or 'none'}")
        documents = list(frame[document_column])
        queries = [query] * len(documents) if query is not None else list(frame[query_column])
        pairs: list[Any] = list(zip(queries, documents, strict=True))
        for place, pair in enumerate(pairs):
            for column, cell in zip((query_column, document_column), pair, strict=True):
                if not isinstance(cell, (str, Mapping, list, tuple)):
                    raise InvalidRequest(column, f"row {place} holds {cell!r}, which is no text; leave such rows out")
        requests = by_query(pairs, instruction, truncation, chunking, activation)
        with _progress(len(pairs), show_progress) as advance:
            asked = [(replace(request, top_n=top_n, min_score=min_score), places) for request, places in requests]
            submitted = [(self.submit(request, advance), places) for request, places in asked]
            results = [(self.collect(one), places) for one, places in submitted]
        found = [
            (places[document.index], document, rank)
            for result, places in results
            for rank, document in enumerate(result, 1)
        ]
        ranked = frame.iloc[[place for place, _, _ in found]].copy()
        ranked["score"] = [document.score for _, document, _ in found]
        ranked["rank"] = [rank for _, _, rank in found]
        ranked["truncated"] = [document.truncated for _, document, _ in found]
        return ranked

    async def arerank(
        self,
        query: ContentLike,
        documents: Sequence[ContentLike],
        instruction: str | None = None,
        top_n: int | None = None,
        *,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
        on_error: OnError = "fail",
        min_score: float | None = None,
    ) -> RerankResult:
        """`rerank` of one query for an event loop."""
        return await self.answer(
            requested(
                query, documents, instruction, top_n, truncation, chunking, activation, on_error, min_score=min_score
            )
        )

    def score(
        self,
        pairs: Iterable[tuple[ContentLike, ContentLike]],
        instruction: str | None = None,
        *,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
        show_progress: bool | None = None,
    ) -> list[float]:
        """The scores of (query, document) pairs, in their order; pairs of one query share its prefix.

        What `rerank` would report of a pair (cut to fit, instruction ignored) is logged as a warning.
        """
        listed = list(pairs)
        with _progress(len(listed), show_progress) as advance:
            requests = by_query(listed, instruction, truncation, chunking, activation)
            submitted = [(self.submit(request, advance), places) for request, places in requests]
            results = [(self.collect(one), places) for one, places in submitted]
        return scores_in_place(results, len(listed))

    async def ascore(
        self,
        pairs: Iterable[tuple[ContentLike, ContentLike]],
        instruction: str | None = None,
        *,
        truncation: Truncation = Truncation(),  # noqa: B008 - frozen
        chunking: Chunking | None = None,
        activation: bool = True,
    ) -> list[float]:
        """`score` for an event loop."""
        listed = list(pairs)
        requests = by_query(listed, instruction, truncation, chunking, activation)
        results = await self.answer_all([request for request, _ in requests])
        return scores_in_place(list(zip(results, (places for _, places in requests), strict=True)), len(listed))

    def close(self) -> None:
        """Stop the engine; requests that still wait fail with EngineClosed."""
        self._workers.close()
        self._engine.close()
        if self._media is not None:
            self._media.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Reranker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _enqueue(
        self,
        request: RerankRequest,
        media: LoadedMedia | None,
        on_progress: Callable[[int], object] | None = None,
        prompts: PromptBuilder | None = None,
        stages: list[Stage] | None = None,
    ) -> Submitted:
        return self._queue(self._prepare(request, media, prompts, stages), on_progress)

    def _load_blocking(self, request: RerankRequest) -> LoadedMedia | None:
        if self._media is None:
            return None
        return self._media.load_blocking(request, skip_bad_documents=request.on_error == "skip")

    def _prepare(
        self,
        request: RerankRequest,
        media: LoadedMedia | None,
        prompts: PromptBuilder | None = None,
        stages: list[Stage] | None = None,
    ) -> Prepared:
        stages = [] if stages is None else stages
        if request.top_n is not None and request.top_n < 1:
            raise InvalidRequest("top_n", f"must be at least 1, not {request.top_n}; leave it out for all documents")
        if request.labels is not None:
            prompts = self._for_labels(request, request.labels)
        elif any(isinstance(part, Tokens) for content in (request.query, *request.documents) for part in content):
            raise InvalidRequest("documents", "hold token ids, or the query does, which only a request with labels may")
        visuals = media.visuals if media is not None else None
        failed = dict(media.failed) if media is not None else {}
        began = perf_counter()
        places, group = _build(prompts or self._prompts, request, visuals, failed, self._limits)
        if self._limits is not None:
            self._limits.check("tokens", group.prompt_tokens, "documents")
        stages.append(Stage("tokenise", began, perf_counter() - began))
        return Prepared(request, group, places, failed, media, stages)

    def _queue(self, prepared: Prepared, on_progress: Callable[[int], object] | None = None) -> Submitted:
        group, media = prepared.group, prepared.media
        logits = self._engine.submit(group, on_progress and _by_document(group, on_progress), prepared.stages)
        if media is not None:
            logits.add_done_callback(lambda _: media.release())
        return Submitted(prepared.request, group, logits, prepared.places, prepared.failed, prepared.stages)

    def _for_labels(self, request: RerankRequest, labels: Labels) -> PromptBuilder:
        """What writes the prompts of a request with labels. Raises InvalidRequest where no token has a probability."""
        if self._verbatim is None:
            raise InvalidRequest(
                "model",
                "has no head over its vocabulary, so that no token has a probability: it is no decoder, or one that "
                "was converted to a classifier; use a rerank route",
            )
        if self._limits is not None:
            self._limits.check("values", len(request.documents) * len(labels.token_ids), "labels")
        return self._verbatim

    def _warm_up(self) -> None:
        """Run once before the first request: kernels are chosen now, and a broken model shows now."""
        try:
            self.rerank("warm", ["up", "warm up"])
        except Exception:
            self.close()
            raise

    def _rank_all(self, submitted: Iterable[Submitted], logits: Iterable[list[float]]) -> list[RerankResult]:
        return [self._rank(one, own) for one, own in zip(submitted, logits, strict=True)]

    def _rank(self, submitted: Submitted, logits: list[float]) -> RerankResult:
        asked = submitted.request.instruction is not None
        ignored = ("instruction",) if asked and not self.info.takes_instruction else ()
        return rank(submitted, logits, self._activation == "sigmoid", ignored)


def _by_document(group: PromptGroup, on_progress: Callable[[int], object]) -> Callable[[int], object]:
    """What is told of suffixes scored, in order, told as documents scored: those whose last suffix is."""
    stops = [places.stop for places in group.places()]
    scored = 0

    def advance(suffixes: int) -> None:
        nonlocal scored
        before, scored = scored, scored + suffixes
        if finished := bisect_right(stops, scored) - bisect_right(stops, before):
            on_progress(finished)

    return advance


def _of_query(error: InvalidRequest, place: int, several: object) -> InvalidRequest:
    """An error with the place of its query, where there are several."""
    if several is None:
        return error
    return InvalidRequest(error.field, f"{error.problem} (query {place} of the list)", place)


def _characters(request: RerankRequest) -> int:
    """How much text there is to read."""
    contents = (request.query, *request.documents)
    return sum(len(part.text) for content in contents for part in content if isinstance(part, Text))


def _drop(submitted: Submitted) -> None:
    """Have the engine leave out what nobody waits for."""
    submitted.logits.cancel()


def _drop_all(submitted: Iterable[Submitted]) -> None:
    for one in submitted:
        _drop(one)


def _build(
    prompts: PromptBuilder,
    request: RerankRequest,
    visuals: Visuals | None,
    failed: dict[int, InvalidRequest],
    limits: RequestLimits | None,
) -> tuple[tuple[int, ...], PromptGroup]:
    """The prompts of the documents that have not failed, and the indices of those; more of them may go to `failed`."""

    def build(places: Sequence[int]) -> PromptGroup:
        part = replace(request, documents=tuple(request.documents[place] for place in places))
        own = visuals and Visuals(visuals.query, tuple(visuals.documents[place] for place in places))
        with bounded(limits):
            return prompts.build(part, own)

    places = [place for place in range(len(request.documents)) if place not in failed]
    if request.on_error == "skip":
        with leaving_out() as found:
            group = build(places)
        if not found:
            return tuple(places), group
        for index, error in found.items():
            place = places[index]
            field = error.field.replace(f"documents[{index}]", f"documents[{place}]", 1)
            failed[place] = InvalidRequest(field, error.problem)
        places = [place for place in places if place not in failed]
    return tuple(places), build(places)


@contextmanager
def _progress(documents: int, show: bool | None) -> Iterator[Callable[[int], object] | None]:
    """A bar over documents, as what advances it; None where none is shown."""
    if not (documents >= PROGRESS_FROM if show is None else show):
        yield None
        return
    with tqdm(total=documents, desc="Scoring", unit="doc") as bar:
        yield bar.update
