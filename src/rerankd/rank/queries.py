"""The queries to rank, and their documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rerankd.core import Content


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the documents to score.

    documents: ids and contents; may be iterated several times
    count: number of documents
    where: the file and line of the query, for errors
    digest: identifies the query and its documents: equal input has an equal digest
    instruction: the query's instruction; None is the instruction of the run
    """

    id: str
    content: Content
    documents: Iterable[tuple[str, Content]]
    count: int
    where: str
    digest: str
    instruction: str | None = None


class Queries(Protocol):
    """Queries to rank, in order."""

    @property
    def documents(self) -> int | None:
        """Number of documents of all queries; None if the number is unknown before the end."""
        ...

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each file that is read whole before the first query, by the file's role."""
        ...

    @property
    def fraction(self) -> float | None:
        """The part of the input that was read, from 0 to 1, if `documents` is unknown; None if that is unknown too."""
        ...

    def __iter__(self) -> Iterator[Query]:
        """The queries, each with its documents."""
        ...


def short_digest(text: str) -> str:
    """The first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
