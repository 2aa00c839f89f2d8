"""Queries with their documents from one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rerankd.core import Content, InvalidRequest
from rerankd.rank.documents import Documents
from rerankd.rank.files import STANDARD, BadLine, BadLines, Source
from rerankd.rank.queries import Query
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
        if self._source.path == STANDARD:
            return None
        return self._source.position / self._source.size if self._source.size else 0.0

    def __iter__(self) -> Iterator[Query]:
        seen: dict[str, int] = {}
        # Rows of one pair each belong together while they name the same query.
        for _, together in groupby(self._rows(), key=lambda one: one[2]):
            built: _QueryRows | None = None
            for number, row, _ in together:
                try:
                    if built is None:
                        built = self._begin(number, row, seen)
                    built.add(number, row)
                except BadLine as problem:
                    self._bad.add(problem)
            if built is not None and built.documents.count:
                yield built.query()

    def _rows(self) -> Iterator[tuple[int, dict[str, Any], object]]:
        """Rows with their lines, and a key that is equal for those of one query."""
        for number, whole in rows(self._source, PAIRS, self._bad):
            if unknown := sorted(key for key in whole if PAIRS.meaning(key) is None):
                self._bad.note(f"{self._source.name}: not read: {', '.join(unknown)}")
            row = PAIRS.read(whole)
            if "documents" in row:
                yield number, row, number
            else:
                yield number, row, ("pairs", row.get("query_id", json.dumps(row.get("query"), sort_keys=True)))

    def _begin(self, number: int, row: dict[str, Any], seen: dict[str, int]) -> _QueryRows:
        """The query of a row, without its documents. Raises BadLine."""
        name = self._source.name
        if row.get("query") is None:
            raise BadLine(name, number, "has no `query`.")
        own = row.get("query_id", row.get("id") if "documents" in row else None)
        id = well_formed(str(number if own is None else own))
        if id in seen:
            raise BadLine(name, number, f"the query {id!r} is on line {seen[id]} too; its rows must follow each other.")
        instruction = row.get("instruction")
        if instruction is not None and not isinstance(instruction, str):
            raise BadLine(name, number, "`instruction` is not a string.")
        try:
            content = to_content(row["query"], "query")
        except InvalidRequest as error:
            raise BadLine(name, number, f"{error}.") from None
        if own is not None:
            seen[id] = number
        return _QueryRows(name, number, id, row["query"], content, instruction, self._top_k)


class _QueryRows:
    """A query whose rows are being read."""

    def __init__(
        self,
        file: str,
        line: int,
        id: str,
        value: Any,
        content: Content,
        instruction: str | None,
        top_k: int | None,
    ) -> None:
        """value, content: of the query, as the file has it and as the model gets it"""
        self._file, self._line, self._id, self._value, self._content = file, line, id, value, content
        self._instruction, self._top_k = instruction, top_k
        self.documents = Documents()
        self._ids, self._place = set[str](), 0
        self._sha = hashlib.sha256(json.dumps([id, value, instruction, top_k]).encode())

    def add(self, number: int, row: dict[str, Any]) -> None:
        """The document of a row, or all of its `documents`: none of them where one is bad. Raises BadLine."""
        if row.get("query", self._value) != self._value:
            raise BadLine(self._file, number, f"has another text for the query {self._id!r} than line {self._line}.")
        if "documents" in row:
            listed = row["documents"]
            if not isinstance(listed, list) or not listed:
                raise BadLine(self._file, number, "has no list of `documents`, or an empty one.")
            found = [(_own_id(document), _without_id(document)) for document in listed]
        else:
            found = [(row.get("id"), row.get("document"))]
        ids = []
        first, self._place = self._place, self._place + len(found)
        for place, (own, value) in enumerate(found, first):
            if value is None:
                raise BadLine(self._file, number, "has no `document`, or no `documents`.")
            id = well_formed(str(place if own is None else own))
            if id in self._ids:
                raise BadLine(self._file, number, f"the document {id!r} is there twice for one query.")
            try:
                to_content(value, f"documents[{place}]")
            except InvalidRequest as error:
                raise BadLine(self._file, number, f"{error}.") from None
            ids.append(id)
            self._ids.add(id)
        for id, (_, value) in zip(ids, found, strict=True):
            self._sha.update(json.dumps([id, value]).encode())
            if self._top_k is None or self.documents.count < self._top_k:
                self.documents.add(id, value)

    def query(self) -> Query:
        """The query with its documents."""
        return Query(
            id=self._id,
            content=self._content,
            documents=self.documents,
            count=self.documents.count,
            where=f"{self._file}, line {self._line}",
            digest=self._sha.hexdigest()[:16],
            instruction=self._instruction,
        )


def _own_id(document: Any) -> Any:
    if not isinstance(document, dict):
        return None
    return next((document[name] for name in IDS if document.get(name) is not None), None)


def _without_id(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {name: value for name, value in document.items() if name not in IDS}
