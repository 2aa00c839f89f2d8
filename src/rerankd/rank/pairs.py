"""Queries with their documents from one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rerankd.core import InvalidRequest
from rerankd.rank.files import BadLine, BadLines, Source
from rerankd.rank.queries import Query, short_digest
from rerankd.rank.rows import Columns, rows
from rerankd.rank.texts import IDS, QUERY_IDS
from rerankd.rank.values import to_content, well_formed

PAIRS = Columns(
    names={
        "query_id": QUERY_IDS,
        "id": IDS,
        "query": ("query", "question"),
        "documents": ("documents", "passages", "texts"),
        "document": ("document", "passage", "text"),
        "instruction": ("instruction", "instruct"),
    },
    positions={2: ("query", "document"), 4: ("query_id", "id", "query", "document")},
)


class Pairs:
    """One file whose lines hold a query each, with its documents, or whose rows hold a pair each.

    Raises FileProblem.
    """

    documents = None
    digests: dict[str, str] = {}  # noqa: RUF012 - never changed

    def __init__(self, path: str, top_k: int | None, bad: BadLines) -> None:
        self._source, self._top_k, self._bad = Source(path), top_k, bad

    @property
    def fraction(self) -> float | None:
        size = self._source.size
        return self._source.position / size if size else None

    def __iter__(self) -> Iterator[Query]:
        numbered = self._rows()
        # Rows of one pair each belong together while they name the same query.
        for _, together in groupby(numbered, key=lambda one: one[2]):
            found = [(number, row) for number, row, _ in together]
            try:
                yield self._query(found)
            except BadLine as problem:
                self._bad.add(problem)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any], object]]:
        last: object = None
        for number, whole in rows(self._source, PAIRS, self._bad):
            if unknown := sorted(key for key in whole if PAIRS.meaning(key) is None):
                self._bad.note(f"{self._source.name}: not read: {', '.join(unknown)}")
            row = PAIRS.read(whole)
            if "documents" in row:
                yield number, row, number
                continue
            key = row.get("query_id", json.dumps(row.get("query"), sort_keys=True))
            last = ("pairs", key)
            yield number, row, last

    def _query(self, found: Sequence[tuple[int, dict[str, Any]]]) -> Query:
        (number, first), name = found[0], self._source.name
        if first.get("query") is None:
            raise BadLine(name, number, "has no `query`.")
        listed = first.get("documents")
        if listed is None:
            listed = [row.get("document") for _, row in found]
            ids = [row.get("id") for _, row in found]
            own = first.get("query_id")
        else:
            if not isinstance(listed, list) or not listed:
                raise BadLine(name, number, "has no list of `documents`, or an empty one.")
            ids = [_own_id(document) for document in listed]
            listed = [_without_id(document) for document in listed]
            own = first.get("query_id", first.get("id"))
        try:
            query = to_content(first["query"], "query")
            documents = []
            for place, (identity, value) in enumerate(zip(ids, listed, strict=True)):
                line = number if len(found) == 1 else found[place][0]
                if value is None:
                    raise BadLine(name, line, "has no `document`, or no `documents`.")
                shown = well_formed(str(place if identity is None else identity))
                documents.append((shown, to_content(value, f"documents[{place}]")))
        except InvalidRequest as error:
            raise BadLine(name, number, f"{error}.") from None
        _expect_different(name, number, (identity for identity, _ in documents))
        documents = documents[: self._top_k]
        instruction = first.get("instruction")
        if instruction is not None and not isinstance(instruction, str):
            raise BadLine(name, number, "`instruction` is not a string.")
        told = json.dumps([own, first["query"], ids, listed, instruction, self._top_k], ensure_ascii=True)
        return Query(
            id=well_formed(str(number if own is None else own)),
            content=query,
            documents=documents,
            count=len(documents),
            where=f"{name}, line {number}",
            digest=short_digest(told),
            instruction=instruction,
        )


def _own_id(document: Any) -> Any:
    if not isinstance(document, dict):
        return None
    return next((document[name] for name in IDS if document.get(name) is not None), None)


def _without_id(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {name: value for name, value in document.items() if name not in IDS}


def _expect_different(name: str, number: int, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise BadLine(name, number, f"has two documents of the id {id!r}.")
        seen.add(id)
