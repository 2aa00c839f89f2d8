"""The Python interface: load a model, then `rerank` and `score`, blocking or async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from rerankd.arguments import by_query, queries_with_documents, requested, scores_in_place
from rerankd.contents import ContentLike
from rerankd.core import Chunking, InvalidRequest, OnError, RerankResult, Truncation
from rerankd.data_frames import pairs_of, ranked_rows
from rerankd.progress import progress_bar
from rerankd.ranking import Submitted
from rerankd.request_reranker import RequestReranker, drop_all

if TYPE_CHECKING:
    from pandas import DataFrame


class Reranker(RequestReranker):
    """A loaded model and its engine. Every method may be called from any thread; close it, or use `with`.

    >>> with Reranker("BAAI/bge-reranker-v2-m3") as reranker:
    ...     best = reranker.rerank("what is panda?", ["hi", "The giant panda is a bear."]).documents[0]

    Raises ModelError where the model cannot be found, read or served.
    """

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
        with progress_bar(sum(len(request.documents) for request in requests), show_progress) as advance:
            submitted: list[Submitted] = []
            try:
                for request in requests:
                    submitted.append(self.submit(request, advance))
            except InvalidRequest as error:
                drop_all(submitted)
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
        pairs = pairs_of(frame, query, query_column, document_column)
        requests = by_query(pairs, instruction, truncation, chunking, activation)
        with progress_bar(len(pairs), show_progress) as advance:
            asked = [(replace(request, top_n=top_n, min_score=min_score), places) for request, places in requests]
            submitted = [(self.submit(request, advance), places) for request, places in asked]
            results = [(self.collect(one), places) for one, places in submitted]
        return ranked_rows(frame, results)

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

        The facts that `rerank` would report of a pair (cut to fit, instruction ignored) are logged as a warning.
        """
        listed = list(pairs)
        with progress_bar(len(listed), show_progress) as advance:
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


def _of_query(error: InvalidRequest, place: int, several: object) -> InvalidRequest:
    """An error with the place of its query, where there are several."""
    if several is None:
        return error
    return InvalidRequest(error.field, f"{error.problem} (query {place} of the list)", place)
