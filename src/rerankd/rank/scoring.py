"""Queries in blocks, the scores of their documents, and the rankings."""

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
KEPT = 100_000
"""Documents of one query that may wait before those that `top_n` leaves out are dropped."""


@dataclass(frozen=True, slots=True)
class Block:
    """Whole queries that are finished together."""

    number: int
    queries: tuple[Query, ...]

    @property
    def documents(self) -> int:
        return sum(query.count for query in self.queries)

    @property
    def digest(self) -> str:
        return hashlib.sha256(" ".join(query.digest for query in self.queries).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings for every query. Raises InvalidRequest for a `min_score` that is no number."""

    top_n: int | None = None
    min_score: float | None = None
    instruction: str | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise InvalidRequest("min_score", f"must be a finite number, not {self.min_score}")


@dataclass
class Found:
    """A query's documents as they are scored, piece by piece.

    ignored: what was asked for without effect, or with less than was asked for
    error: why the query was left out
    """

    query: Query
    wanted: Wanted
    scored: int = 0
    query_truncated: bool | None = None
    failed: dict[str, str] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    error: InvalidRequest | None = None
    _entries: list[tuple[float, Ranked]] = field(default_factory=list)

    def add(self, document: Ranked, key: float | None = None) -> None:
        """key: what orders it, where the score does not tell documents apart."""
        self.scored += 1
        if self.wanted.min_score is not None and document.score < self.wanted.min_score:
            return
        self._entries.append((document.score if key is None else key, document))
        if self.wanted.top_n and len(self._entries) > self.wanted.top_n + KEPT:
            self._order()

    def ranking(self) -> Ranking:
        """The documents by falling key, equal ones in the order they came in."""
        self._order()
        results = tuple(document for _, document in self._entries)
        return Ranking(self.query.id, results, self.scored, self.query_truncated, self.failed)

    def _order(self) -> None:
        self._entries.sort(key=lambda entry: (-entry[0], entry[1].index))
        del self._entries[self.wanted.top_n or len(self._entries) :]


class Scorer(Protocol):
    """Scores queries, by a loaded model or by a server.

    block_documents: how many documents a block has at least
    """

    @property
    def block_documents(self) -> int: ...

    def score(
        self, blocks: Iterable[Block], wanted: Wanted, on_documents: Callable[[int], object]
    ) -> Iterator[tuple[Block, list[Found]]]:
        """The blocks, as they are finished. Raises InvalidRequest and other RerankdErrors."""
        ...


def in_blocks(queries: Iterable[Query], documents: int) -> Iterator[Block]:
    """Consecutive queries until they have so many documents: the same blocks for the same queries."""
    number, held, count = 0, list[Query](), 0
    for query in queries:
        held.append(query)
        count += query.count
        if count >= documents:
            yield Block(number, tuple(held))
            number, held, count = number + 1, [], 0
    if held:
        yield Block(number, tuple(held))


@dataclass(frozen=True, slots=True)
class Piece:
    """Some documents of a query, the first of them at `start`."""

    query: int
    start: int
    ids: tuple[str, ...]
    contents: tuple[Content, ...]


def pieces(number: int, query: Query, size: int) -> Iterator[Piece]:
    """The documents of a block's query, so many at a time."""
    start = 0
    for some in batched(query.documents, size):
        yield Piece(number, start, tuple(id for id, _ in some), tuple(content for _, content in some))
        start += len(some)


def in_query(error: InvalidRequest, query: Query, start: int) -> InvalidRequest:
    """An error of a piece as one of the query: with the document's own place, and where the query stands."""
    field = error.field
    if field.startswith("documents["):
        place, bracket, rest = field.removeprefix("documents[").partition("]")
        field = f"documents[{int(place) + start}{bracket}{rest}"
    return InvalidRequest(f"{query.where}: {field}", error.problem)


def marked(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    left = iter(items)
    for item in left:
        before = item
        for item in left:
            yield before, False
            before = item
        yield before, True


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some
