"""Queries and their documents from one file."""

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
    """The queries of a file. Each row holds a query with a list of documents, or one pair of a query and a document.

    top_k: how many documents of a query are used, from the first; None is all

    Raises FileProblem.
    """

    documents = None
    digests: dict[str, str] = {}  # noqa: RUF012 - never changed

    def __init__(self, path: str, top_k: int | None, bad: BadLines) -> None:
        self._source, self._top_k, self._bad = Source(path), top_k, bad

    @property
    def fraction(self) -> float | None:
        """The part of the file that was read, from 0 to 1; None for standard input."""
        if self._source.path == STANDARD:
            return None
        return self._source.position / self._source.size if self._source.size else 0.0

    def __iter__(self) -> Iterator[Query]:
        seen: dict[str, int] = {}
        # Consecutive rows with one pair each belong to the same query while their keys are equal.
        for _, query_rows in groupby(self._rows(), key=lambda row: row[2]):
            builder: _QueryBuilder | None = None
            for number, row, _ in query_rows:
                try:
                    if builder is None:
                        builder = self._begin(number, row, seen)
                    builder.add(number, row)
                except BadLine as problem:
                    self._bad.add(problem)
            if builder is not None and builder.documents.count:
                yield builder.query()

    def _rows(self) -> Iterator[tuple[int, dict[str, Any], object]]:
        """Each row as its line number, its cells, and a key that the rows of one query share."""
        for number, cells in rows(self._source, PAIRS, self._bad):
            if unknown := sorted(key for key in cells if PAIRS.meaning(key) is None):
                self._bad.note(f"{self._source.name}: columns that are not used: {', '.join(unknown)}")
            row = PAIRS.read(cells)
            if "documents" in row:
                yield number, row, number
            else:
                asked = json.dumps([row.get("query"), row.get("instruction")], sort_keys=True)
                yield number, row, ("pairs", row.get("query_id", asked))

    def _begin(self, number: int, row: dict[str, Any], seen: dict[str, int]) -> _QueryBuilder:
        """Start the query of a row, without its documents. Raises BadLine.

        seen: the line of each query by its id; the negative line if the query has no id of its own
        """
        name = self._source.name
        if row.get("query") is None:
            raise BadLine(name, number, "has no `query`.")
        given_id = row.get("query_id", row.get("id") if "documents" in row else None)
        id = well_formed(str(number if given_id is None else given_id))
        if id in seen:
            way_out = "its rows must be consecutive"
            if given_id is None or seen[id] < 0:
                way_out = "a query without an id has the number of its line; give each query an id, or none"
            raise BadLine(name, number, f"the query {id!r} is already on line {abs(seen[id])}; {way_out}.")
        instruction = row.get("instruction")
        if instruction is not None and not isinstance(instruction, str):
            raise BadLine(name, number, "`instruction` is not a string.")
        try:
            content = to_content(row["query"], "query")
        except InvalidRequest as error:
            raise BadLine(name, number, f"{error}.") from None
        seen[id] = -number if given_id is None else number
        return _QueryBuilder(name, number, id, row["query"], content, instruction, self._top_k)


class _QueryBuilder:
    """Builds a query from its rows, one after the other."""

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
        """value: the query as the file's JSON value

        content: the same query as the model takes it
        """
        self._file, self._line, self._id, self._value, self._content = file, line, id, value, content
        self._instruction, self._top_k = instruction, top_k
        self.documents = Documents()
        self._ids, self._place = set[str](), 0
        self._sha = hashlib.sha256(json.dumps([id, value, instruction, top_k]).encode())

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Add the document of a row, or all of its `documents`. Raises BadLine, and adds none, if a document is bad."""
        if row.get("query", self._value) != self._value:
            raise BadLine(self._file, number, f"the text of query {self._id!r} differs from line {self._line}.")
        if row.get("instruction", self._instruction) != self._instruction:
            raise BadLine(self._file, number, f"the instruction of query {self._id!r} differs from line {self._line}.")
        listed = row.get("documents")
        if "documents" in row:
            if not isinstance(listed, list) or not listed:
                raise BadLine(self._file, number, "`documents` is empty or not a list.")
            id_values = [(_given_id(document), _without_id(document)) for document in listed]
        else:
            id_values = [(row.get("id"), row.get("document"))]
        ids = []
        first, self._place = self._place, self._place + len(id_values)
        for place, (given_id, value) in enumerate(id_values, first):
            if value is None:
                why = f"document {place} has no content" if listed else "has neither `documents` nor `document`"
                raise BadLine(self._file, number, f"{why}.")
            id = well_formed(str(place if given_id is None else given_id))
            if id in self._ids:
                raise BadLine(self._file, number, f"the query has the document {id!r} twice.")
            try:
                to_content(value, f"documents[{place}]")
            except InvalidRequest as error:
                raise BadLine(self._file, number, f"{error}.") from None
            ids.append(id)
            self._ids.add(id)
        for id, (_, value) in zip(ids, id_values, strict=True):
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


def _given_id(document: Any) -> Any:
    if not isinstance(document, dict):
        return None
    return next((document[name] for name in IDS if document.get(name) is not None), None)


def _without_id(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {name: value for name, value in document.items() if name not in IDS}
