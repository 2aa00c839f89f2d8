"""Queries to rank, with their documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rerankd.core import Content


@dataclass(frozen=True, slots=True)
class Query:
    """A query and what is to be scored against it.

    where: the place that errors name
    documents: gives the ids and contents anew each time; `count` of them
    digest: equal for equal queries and documents
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
        """How many documents there are in all; None where that is not known before the end."""
        ...

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each file that was read before the first query."""
        ...

    @property
    def fraction(self) -> float | None:
        """The part of the input that was read, where `documents` is not known; None where its size is not either."""
        ...

    def __iter__(self) -> Iterator[Query]:
        """The queries, each with its documents."""
        ...


def short_digest(text: str) -> str:
    """Equal for equal texts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
