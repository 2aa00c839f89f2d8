"""The Python interface: load a model, then `rerank` and `score`, blocking or async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from rerankd.arguments import by_query, queries_with_documents, requested, scores_in_place
from rerankd.contents import ContentLike
from rerankd.core import Chunking, InvalidRequest, OnError, RerankResult, Truncation
from rerankd.data_frames import in_frame, pairs_of, ranked_rows, warn
from rerankd.progress import progress_bar
from rerankd.ranking import Submitted
from rerankd.request_reranker import RequestReranker, drop_all

if TYPE_CHECKING:
    from pandas import DataFrame


class Reranker(RequestReranker):
    """A loaded model and its engine. Any thread may call any method. Call `close` at the end, or use `with`.

    >>> with Reranker("BAAI/bge-reranker-v2-m3") as reranker:
    ...     best = reranker.rerank("what is panda?", ["hi", "The giant panda is a bear."]).documents[0]

    The arguments are the fields of `LoadOptions`. Raises ModelError if the model cannot be found, read or served.
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
        """Score every document against the query. The result has the documents by falling score.

        query: one query, or a list of queries; a list of queries gives a list of results
        documents: one list for all queries, or one list for each query
        instruction: describes which documents are relevant; None for the default instruction
        top_n: the number of documents to return; None for all
        truncation: limits on the length of texts, in tokens
        chunking: splits a document that does not fit, and takes the score of its best chunk; None cuts the document
        activation: False for logits in place of scores
        on_error: "skip" leaves out documents that cannot be read, and reports them in `failed`
        min_score: leaves out documents with a lower score, and reports them in `below_min_score`
        show_progress: whether to show a progress bar; None for a bar from PROGRESS_FROM documents on

        Raises InvalidRequest (a ValueError) for a request that cannot be answered. If there are several queries, its
        `request` is the index of the query.
        """
        several = queries_with_documents(query, documents)
        pairs: Any = [(query, documents)] if several is None else several
        requests = []
        for place, (single_query, own_documents) in enumerate(pairs):
            try:
                requests.append(
                    requested(
                        single_query,
                        own_documents,
                        instruction,
                        top_n,
                        truncation,
                        chunking,
                        activation,
                        on_error,
                        min_score=min_score,
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
            results = [self.collect(submission) for submission in submitted]
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
        """The rows of a pandas frame by falling score, with the columns `score`, `rank` and `truncated`.

        query: the query of all rows; None for the query in `query_column` of each row
        top_n, min_score: apply to each query

        The rows of one query are together, and queries keep the order of their first rows. Rows keep their index and
        their other columns; a column with one of the three names is replaced. `truncated` is true if the document or
        its query was cut to fit. A warning in the log reports such rows, and an instruction without effect.

        Raises InvalidRequest for a column that is missing or there twice, and, by row (from 0) and column, for a cell
        that is not a content or cannot be read.
        """
        pairs = pairs_of(frame, query, query_column, document_column)
        requests = by_query(pairs, instruction, truncation, chunking, activation)
        with progress_bar(len(pairs), show_progress) as advance:
            submitted: list[tuple[Submitted, list[int]]] = []
            for request, places in requests:
                limited = requested(
                    request.query, request.documents, instruction, top_n, truncation, chunking, activation,
                    min_score=min_score,
                )  # fmt: skip
                try:
                    submitted.append((self.submit(limited, advance), places))
                except InvalidRequest as error:
                    drop_all([submission for submission, _ in submitted])
                    raise in_frame(error, places, query_column if query is None else None, document_column) from error
            results = [(self.collect(submission), places) for submission, places in submitted]
        warn(results, len(pairs))
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
        """`rerank` of one query, for asyncio."""
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
        """The scores of (query, document) pairs, in their order. Pairs with the same query share its prefix.

        A warning in the log reports pairs that were cut to fit, and an instruction without effect. Raises
        InvalidRequest like `rerank`.
        """
        listed = list(pairs)
        with progress_bar(len(listed), show_progress) as advance:
            requests = by_query(listed, instruction, truncation, chunking, activation)
            submitted = [(self.submit(request, advance), places) for request, places in requests]
            results = [(self.collect(submission), places) for submission, places in submitted]
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
        """`score`, for asyncio."""
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
    """The error, with the index of its query if there are several queries."""
    if several is None:
        return error
    return InvalidRequest(error.field, f"{error.problem} (query {place} of the list)", place)
