"""Scoring with a model that this process has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rerankd.core import InvalidRequest, RerankRequest
from rerankd.rank.runs import Ranked
from rerankd.rank.scoring import Block, Found, Piece, Wanted, in_query, marked, pieces
from rerankd.rank.values import is_text

if TYPE_CHECKING:
    from rerankd.preparing import Prepared
    from rerankd.ranking import Submitted
    from rerankd.reranker import Reranker

T = TypeVar("T")
BLOCK_DOCUMENTS = 1024
"""Documents that are queued at a time, at most."""
SLOW_BLOCK_DOCUMENTS = 100
"""Documents of a block where a thousand take minutes. A query with the usual 100 candidates is a block of its own, so
that a stopped run loses no finished query."""
MEDIA_DOCUMENTS = 32
"""Documents with images or videos that are read at a time: all of a request's are in memory together."""


@dataclass(frozen=True, slots=True)
class _Step:
    """Pieces of a block that are queued at once, each ready or an error. `last` ends the block."""

    block: Block
    found: list[Found]
    ready: list[tuple[Piece, Prepared]]
    last: bool


class LocalScorer:
    """Tokenises the next documents while the model scores the ones before them.

    What is queued at once depends on the queries alone, never on time, and the engine has nothing else to do: a query's
    scores are the same to the last digit whether the run was stopped before it or not.
    """

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        info = reranker.info
        # Replicas need several batches at a time.
        slow = info.data_parallel_size == 1 and (info.device == "cpu" or info.supports_vision)
        self.block_documents = SLOW_BLOCK_DOCUMENTS if slow else BLOCK_DOCUMENTS

    def score(
        self, blocks: Iterable[Block], wanted: Wanted, on_documents: Callable[[int], object]
    ) -> Iterator[tuple[Block, list[Found]]]:
        with ThreadPoolExecutor(1, thread_name_prefix="rerankd-prepare") as thread:
            for step in _ahead(self._steps(blocks, wanted), thread):
                submitted = self._reranker.submit_together([one for _, one in step.ready], on_documents)
                for (piece, _), one in zip(step.ready, submitted, strict=True):
                    self._collect(step.found[piece.query], piece, one)
                if step.last:
                    yield step.block, step.found

    def _steps(self, blocks: Iterable[Block], wanted: Wanted) -> Iterator[_Step]:
        for block in blocks:
            found = [Found(query, wanted) for query in block.queries]
            steps = marked(_together(block))
            for together, last in steps:
                ready = []
                for piece in together:
                    prepared = self._prepare(found[piece.query], piece)
                    if prepared is not None:
                        ready.append((piece, prepared))
                yield _Step(block, found, ready, last)

    def _prepare(self, found: Found, piece: Piece) -> Prepared | None:
        """None for a query that is left out. Raises InvalidRequest unless what is bad is to be skipped."""
        if found.error is not None:
            return None
        query, wanted = found.query, found.wanted
        request = RerankRequest(
            query=query.content,
            documents=piece.contents,
            instruction=query.instruction if query.instruction is not None else wanted.instruction,
            on_error="skip" if wanted.skip_bad else "fail",
        )
        try:
            prepared = self._reranker.prepare(request)
            if prepared.group.windows is not None and len(piece.ids) < query.count:
                raise InvalidRequest(
                    "documents",
                    f"are {query.count}, and this model scores a query's documents together, {BLOCK_DOCUMENTS} at most "
                    "here; send the best of them by a cheaper model",
                )
            return prepared
        except InvalidRequest as error:
            problem = in_query(error, query, piece.start)
            if not wanted.skip_bad:
                raise problem from error
            found.error = problem
            return None

    def _collect(self, found: Found, piece: Piece, submitted: Submitted) -> None:
        result = self._reranker.collect(submitted)
        # Large logits differ where their scores are all rounded to 1. Of windows the scores themselves are the keys.
        windows, values = submitted.group.windows, submitted.logits.result()
        logits = dict(zip(submitted.places, values, strict=True)) if windows is None else {}
        for document in result.in_request_order():
            id, index = piece.ids[document.index], piece.start + document.index
            found.add(Ranked(id, index, document.score, document.truncated), logits.get(document.index, document.score))
        for index, error in sorted(result.failed.items()):
            found.failed[piece.ids[index]] = str(in_query(error, found.query, piece.start))
        found.query_truncated = bool(found.query_truncated) or result.query_truncated
        found.ignored.update(result.ignored)


def _together(block: Block) -> Iterator[list[Piece]]:
    """A block's pieces, with up to BLOCK_DOCUMENTS documents at a time; one with images or videos by itself."""
    held: list[Piece] = []
    count = 0
    for number, query in enumerate(block.queries):
        text_query = is_text(query.content)
        for piece in pieces(number, query, BLOCK_DOCUMENTS):
            if not text_query or not all(map(is_text, piece.contents)):
                if held:
                    yield held
                held, count = [], 0
                for start in range(0, len(piece.ids), MEDIA_DOCUMENTS):
                    some = slice(start, start + MEDIA_DOCUMENTS)
                    yield [Piece(number, piece.start + start, piece.ids[some], piece.contents[some])]
                continue
            if held and count + len(piece.ids) > BLOCK_DOCUMENTS:
                yield held
                held, count = [], 0
            held.append(piece)
            count += len(piece.ids)
    if held:
        yield held


def _ahead(items: Iterator[T], thread: ThreadPoolExecutor) -> Iterator[T]:
    """The items, each made in the thread while the one before it is used."""
    end = object()
    future = thread.submit(next, items, end)
    while (item := future.result()) is not end:
        future = thread.submit(next, items, end)
        yield item  # type: ignore[misc]
