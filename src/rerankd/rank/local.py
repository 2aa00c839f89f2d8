"""Scoring by a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rerankd.core import InvalidRequest, RerankRequest
from rerankd.rank.runs import Ranked
from rerankd.rank.scoring import Block, Piece, QueryScores, RankSettings, in_query, mark_last, pieces
from rerankd.rank.values import is_text

if TYPE_CHECKING:
    from rerankd.preparing import Prepared
    from rerankd.ranking import Submitted
    from rerankd.reranker import Reranker

T = TypeVar("T")
BLOCK_DOCUMENTS = 1024
"""Most documents that are queued together."""
SLOW_BLOCK_DOCUMENTS = 100
"""Least documents of a block where a thousand documents take minutes.

A query with the usual 100 candidates is then a block by itself, so that a stopped run loses no finished query.
"""
MEDIA_DOCUMENTS = 32
"""Most documents of a request with images or videos, because all media of a request are in memory at once."""


@dataclass(frozen=True, slots=True)
class _Step:
    """Pieces of a block that are queued together.

    scores: of each query of the block
    ready: the pieces with their prepared requests, without those of queries that are left out
    last: whether this step ends the block
    """

    block: Block
    scores: list[QueryScores]
    ready: list[tuple[Piece, Prepared]]
    last: bool


class LocalScorer:
    """Scores documents with a loaded model, and tokenises the next documents meanwhile.

    Which documents are queued together depends on the queries alone, never on timing, and nothing else uses the engine.
    So the batches are the same in every run, and a resumed run gives the same scores to the last digit.
    """

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        info = reranker.info
        # Replicas need large blocks: each replica takes a batch.
        slow = info.data_parallel_size == 1 and (info.device == "cpu" or info.supports_vision)
        self.block_documents = SLOW_BLOCK_DOCUMENTS if slow else BLOCK_DOCUMENTS

    def score(
        self, blocks: Iterable[Block], settings: RankSettings, on_documents: Callable[[int], object]
    ) -> Iterator[tuple[Block, list[QueryScores]]]:
        with ThreadPoolExecutor(1, thread_name_prefix="rerankd-prepare") as thread:
            for step in _ahead(self._steps(blocks, settings), thread):
                submitted = self._reranker.submit_together([prepared for _, prepared in step.ready], on_documents)
                for (piece, _), request in zip(step.ready, submitted, strict=True):
                    self._collect(step.scores[piece.query], piece, request)
                if step.last:
                    yield step.block, step.scores

    def _steps(self, blocks: Iterable[Block], settings: RankSettings) -> Iterator[_Step]:
        for block in blocks:
            scores = [QueryScores(query, settings) for query in block.queries]
            for queued, last in mark_last(_queued_together(block)):
                ready = []
                for piece in queued:
                    prepared = self._prepare(scores[piece.query], piece)
                    if prepared is not None:
                        ready.append((piece, prepared))
                yield _Step(block, scores, ready, last)

    def _prepare(self, scores: QueryScores, piece: Piece) -> Prepared | None:
        """Prepare a piece; None if its query is left out. Raises InvalidRequest, unless bad queries are skipped."""
        if scores.error is not None:
            return None
        query, settings = scores.query, scores.settings
        request = RerankRequest(
            query=query.content,
            documents=piece.contents,
            instruction=query.instruction if query.instruction is not None else settings.instruction,
            on_error="skip" if settings.skip_bad else "fail",
        )
        try:
            prepared = self._reranker.prepare(request)
            if prepared.group.windows is not None and len(piece.ids) < query.count:
                raise InvalidRequest(
                    "documents",
                    f"are {query.count}, but this model scores all documents of a query together, and at most "
                    f"{BLOCK_DOCUMENTS} here; let a cheaper model select the best of them first",
                )
            return prepared
        except InvalidRequest as error:
            problem = in_query(error, query, piece.start)
            if not settings.skip_bad:
                raise problem from error
            scores.error = problem
            return None

    def _collect(self, scores: QueryScores, piece: Piece, submitted: Submitted) -> None:
        result = self._reranker.collect(submitted)
        # Logits order the documents, because the scores of large logits all round to 1. Windows have scores alone.
        windows, values = submitted.group.windows, submitted.logits.result()
        logits = dict(zip(submitted.places, values, strict=True)) if windows is None else {}
        for document in result.in_request_order():
            id, index = piece.ids[document.index], piece.start + document.index
            key = logits.get(document.index, document.score)
            scores.add(Ranked(id, index, document.score, document.truncated), key)
        for index, error in sorted(result.failed.items()):
            scores.failed[piece.ids[index]] = str(in_query(error, scores.query, piece.start))
        scores.query_truncated = bool(scores.query_truncated) or result.query_truncated
        scores.ignored.update(result.ignored)


def _queued_together(block: Block) -> Iterator[list[Piece]]:
    """Lists of a block's pieces with up to BLOCK_DOCUMENTS documents. A piece with images or videos is a list alone."""
    waiting: list[Piece] = []
    count = 0
    for number, query in enumerate(block.queries):
        text_query = is_text(query.content)
        for piece in pieces(number, query, BLOCK_DOCUMENTS):
            if not text_query or not all(map(is_text, piece.contents)):
                if waiting:
                    yield waiting
                waiting, count = [], 0
                for start in range(0, len(piece.ids), MEDIA_DOCUMENTS):
                    part = slice(start, start + MEDIA_DOCUMENTS)
                    yield [Piece(number, piece.start + start, piece.ids[part], piece.contents[part])]
                continue
            if waiting and count + len(piece.ids) > BLOCK_DOCUMENTS:
                yield waiting
                waiting, count = [], 0
            waiting.append(piece)
            count += len(piece.ids)
    if waiting:
        yield waiting


def _ahead(items: Iterator[T], thread: ThreadPoolExecutor) -> Iterator[T]:
    """The items, each computed in the thread while the caller uses the previous item."""
    end = object()
    future = thread.submit(next, items, end)
    while (item := future.result()) is not end:
        future = thread.submit(next, items, end)
        yield item  # type: ignore[misc]
