"""Blocks of queries, the scores of their documents, and the rankings that follow from the scores."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from rerankd.core import Content, InvalidRequest
from rerankd.rank.queries import Query
from rerankd.rank.runs import Ranked, Ranking

T = TypeVar("T")
SPARE_DOCUMENTS = 100_000
"""Documents beyond `top_n` that a query may hold before the worst are dropped, which bounds its memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive queries that are scored and recorded together, with all their documents."""

    number: int
    queries: tuple[Query, ...]

    @property
    def documents(self) -> int:
        """Number of documents of all its queries."""
        return sum(query.count for query in self.queries)

    @property
    def digest(self) -> str:
        """Identifies the queries and documents: equal input has an equal digest."""
        return hashlib.sha256(" ".join(query.digest for query in self.queries).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RankSettings:
    """The settings of a run, for every query.

    top_n: how many documents a ranking has at most; None is all
    min_score: documents with a lower score are left out
    instruction: for queries without an instruction
    skip_bad: leave out bad queries and documents instead of raising an error

    Raises InvalidRequest if `min_score` is not finite.
    """

    top_n: int | None = None
    min_score: float | None = None
    instruction: str | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise InvalidRequest("min_score", f"must be a finite number, not {self.min_score}")


@dataclass
class QueryScores:
    """The scores of a query's documents, collected piece by piece.

    scored: number of documents with a score
    cut: how many of these were cut to fit
    query_truncated: whether the query was cut to fit; None while nothing is known
    failed: the reason for each document that could not be scored, by id
    ignored: parameters of the request that were ignored, or applied only in part
    error: the reason if the whole query was left out
    """

    query: Query
    settings: RankSettings
    scored: int = 0
    cut: int = 0
    query_truncated: bool | None = None
    failed: dict[str, str] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    error: InvalidRequest | None = None
    _entries: list[tuple[float, Ranked]] = field(default_factory=list)

    def add(self, document: Ranked, key: float | None = None) -> None:
        """Add a scored document. `key` orders the ranking in place of the score, if several scores may round to one."""
        self.scored += 1
        self.cut += bool(document.truncated)
        if self.settings.min_score is not None and document.score < self.settings.min_score:
            return
        self._entries.append((document.score if key is None else key, document))
        if self.settings.top_n and len(self._entries) > self.settings.top_n + SPARE_DOCUMENTS:
            self._order()

    def ranking(self) -> Ranking:
        """The ranking: documents by falling key, and equal keys by their place among the candidates."""
        self._order()
        results = tuple(document for _, document in self._entries)
        return Ranking(self.query.id, results, self.scored, self.query_truncated, self.failed, self.cut)

    def _order(self) -> None:
        self._entries.sort(key=lambda entry: (-entry[0], entry[1].index))
        del self._entries[self.settings.top_n or len(self._entries) :]


class Scorer(Protocol):
    """Scores blocks of queries, with a loaded model or through a server."""

    @property
    def block_documents(self) -> int:
        """Least number of documents of a block, except for the last block."""
        ...

    def score(
        self, blocks: Iterable[Block], settings: RankSettings, on_documents: Callable[[int], object]
    ) -> Iterator[tuple[Block, list[QueryScores]]]:
        """Yield each block with the scores of its queries once the block is finished, in any order.

        on_documents: called with the number of documents that were scored, from any thread

        Raises InvalidRequest and other RerankdErrors.
        """
        ...


def in_blocks(queries: Iterable[Query], documents: int) -> Iterator[Block]:
    """Group consecutive queries into blocks of at least `documents` documents. Equal queries give equal blocks."""
    number, grouped, count = 0, list[Query](), 0
    for query in queries:
        grouped.append(query)
        count += query.count
        if count >= documents:
            yield Block(number, tuple(grouped))
            number, grouped, count = number + 1, [], 0
    if grouped:
        yield Block(number, tuple(grouped))


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive documents of a query.

    query: the query's place in its block, from 0
    start: the place of the first document among the query's documents, from 0
    """

    query: int
    start: int
    ids: tuple[str, ...]
    contents: tuple[Content, ...]


def pieces(number: int, query: Query, size: int) -> Iterator[Piece]:
    """The documents of the query at place `number` of a block, in pieces of up to `size` documents."""
    start = 0
    for documents in batched(query.documents, size):
        yield Piece(number, start, tuple(id for id, _ in documents), tuple(content for _, content in documents))
        start += len(documents)


def in_query(error: InvalidRequest, query: Query, start: int) -> InvalidRequest:
    """An error of a piece, changed to name the query's file and line, and the document's place in the whole query."""
    field = error.field
    if field.startswith("documents["):
        place, bracket, rest = field.removeprefix("documents[").partition("]")
        field = f"documents[{int(place) + start}{bracket}{rest}"
    return InvalidRequest(f"{query.where}: {field}", error.problem)


def mark_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item with whether it is the last."""
    remaining = iter(items)
    for item in remaining:
        previous = item
        for item in remaining:
            yield previous, False
            previous = item
        yield previous, True


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
