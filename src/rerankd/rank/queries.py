"""What is to be ranked: queries with their documents, from one file of pairs, or from queries, a corpus and runs."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from rerankd.core import Content, InvalidRequest
from rerankd.rank.files import COMPRESSIONS, BadLine, BadLines, FileProblem, Source
from rerankd.rank.rows import Columns, rows
from rerankd.rank.runs import read_run
from rerankd.rank.values import to_content, well_formed

RRF_CONSTANT = 60
"""Reciprocal rank fusion's k, of Cormack, Clarke and Buettcher (SIGIR 2009)."""
IDS = ("id", "_id", "docid", "doc_id", "pid", "corpus_id", "document_id", "docno")
QUERY_IDS = ("query_id", "qid")
INSERTED_AT_ONCE = 10_000
TEXTS = Columns(
    names={
        "id": (*IDS, *QUERY_IDS),
        "title": ("title",),
        "text": ("text", "contents", "content", "body", "passage", "query", "document"),
        "image": ("image",),
        "video": ("video",),
    },
    positions={2: ("id", "text"), 3: ("id", "title", "text")},
)
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
    """Queries to rank, in order.

    documents: how many there are in all; None where that is not known before the end
    """

    @property
    def documents(self) -> int | None: ...

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each file that was read before the first query."""
        ...

    @property
    def fraction(self) -> float | None:
        """The part of the input that was read, where `documents` is not known."""
        ...

    def __iter__(self) -> Iterator[Query]: ...


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
            digest=_short(told),
            instruction=instruction,
        )


class Collection:
    """Queries, a corpus and first-stage runs, each in files; of several runs the ranks are fused.

    The corpus lies in a database on disk that nothing but this process sees, and that goes with it. Without a run every
    document is a candidate of every query. Raises FileProblem, and BadLine for ids that lead nowhere.
    """

    fraction = None

    def __init__(self, queries: str, corpus: str, runs: Sequence[str], top_k: int | None, bad: BadLines) -> None:
        self._top_k, self._bad = top_k, bad
        # An empty name is SQLite's for a temporary file without a name, in TMPDIR.
        self._data = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._data.executescript(
            """
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;
            CREATE TABLE queries (place INTEGER PRIMARY KEY, id TEXT UNIQUE, line INTEGER, value TEXT);
            CREATE TABLE hits (run INTEGER, query TEXT, document TEXT, score REAL, place INTEGER);
            CREATE TABLE documents (place INTEGER PRIMARY KEY, id TEXT UNIQUE, line INTEGER, value TEXT);
            BEGIN;
            """
        )
        self.digests: dict[str, str] = {}
        self._queries = _inside(queries, "queries")
        self._corpus = _inside(corpus, "corpus")
        self._all = not runs
        self._read(self._queries, "queries", "queries")
        for number, run in enumerate(runs):
            self._read_run(number, run)
        self._fuse()
        self._read(self._corpus, "corpus", "documents")
        self._corpus_size = int(self._data.execute("SELECT count(*) FROM documents").fetchone()[0])
        if not self._corpus_size:
            raise FileProblem(f"{self._corpus} holds no document{'' if self._all else ' that the run names'}.")
        self._check_documents()
        self.documents: int | None = self._count()

    def __iter__(self) -> Iterator[Query]:
        name = self._queries
        for id, line, value in self._data.execute("SELECT id, line, value FROM queries ORDER BY place"):
            candidates = _Candidates(self._data, id, self._all)
            count = self._corpus_size if self._all else candidates.count()
            if not count:
                continue
            content = to_content(json.loads(value), "query")
            yield Query(id, content, candidates, count, f"{name}, line {line}", _short(f"{id} {value}"))

    def _count(self) -> int:
        if self._all:
            return self._corpus_size * int(self._data.execute("SELECT count(*) FROM queries").fetchone()[0])
        return int(self._data.execute("SELECT count(*) FROM candidates").fetchone()[0])

    def _read(self, path: str, what: str, table: str) -> None:
        """A file of ids and texts; of a corpus no more than the candidates."""
        source = Source(path)
        wanted = "" if table == "queries" or self._all else " WHERE EXISTS (SELECT 1 FROM wanted WHERE document = ?1)"
        insert = f"INSERT OR IGNORE INTO {table} (id, line, value) SELECT ?1, ?2, ?3{wanted}"
        for number, row in rows(source, TEXTS, self._bad):
            try:
                id, value = _text(source, number, row)
                added = self._data.execute(insert, (id, number, json.dumps(value, ensure_ascii=True))).rowcount
                if not added and (first := self._line(table, id)):
                    raise BadLine(source.name, number, f"the id {id!r} is on line {first} too.")
            except BadLine as problem:
                self._bad.add(problem)
        self.digests[what] = source.digest
        if table == "queries" and not self._data.execute("SELECT 1 FROM queries LIMIT 1").fetchone():
            raise FileProblem(f"{path} holds no query.")

    def _line(self, table: str, id: str) -> int | None:
        row = self._data.execute(f"SELECT line FROM {table} WHERE id = ?", (id,)).fetchone()
        return int(row[0]) if row else None

    def _read_run(self, number: int, path: str) -> None:
        source = Source(path)
        known = {row[0] for row in self._data.execute("SELECT id FROM queries")}

        def hits() -> Iterator[tuple[int, str, str, float, int]]:
            for place, hit in enumerate(read_run(source, self._bad)):
                if hit.query not in known:
                    self._bad.add(BadLine(source.name, hit.line, f"{self._queries} has no query {hit.query!r}."))
                    continue
                yield number, hit.query, hit.document, hit.score, place

        self._data.executemany("INSERT INTO hits VALUES (?, ?, ?, ?, ?)", hits())
        self.digests[f"run {number + 1}"] = source.digest

    def _fuse(self) -> None:
        """Each query's candidates by falling score, equal ones in the file's order; those of several runs by RRF."""
        # A document that a run names twice counts once, where it stands first.
        self._data.execute(
            """
            CREATE TABLE ranks AS SELECT run, query, document,
                row_number() OVER (PARTITION BY run, query ORDER BY max(score) DESC, min(place)) AS rank
            FROM hits GROUP BY run, query, document
            """
        )
        self._data.execute("DROP TABLE hits")
        self._data.execute(
            f"""
            CREATE TABLE candidates AS SELECT * FROM (
                SELECT query, document,
                    row_number() OVER (PARTITION BY query ORDER BY fused DESC, run, rank) AS place
                FROM (SELECT query, document, min(run) AS run, min(rank) AS rank,
                        sum(1.0 / ({RRF_CONSTANT} + rank)) AS fused FROM ranks GROUP BY query, document)
            ) WHERE place <= ? OR ? IS NULL
            """,
            (self._top_k, self._top_k),
        )
        self._data.execute("DROP TABLE ranks")
        self._data.execute("CREATE UNIQUE INDEX by_query ON candidates (query, place)")
        self._data.execute("CREATE TABLE wanted (document TEXT PRIMARY KEY) WITHOUT ROWID")
        self._data.execute("INSERT INTO wanted SELECT DISTINCT document FROM candidates")

    def _check_documents(self) -> None:
        missing = self._data.execute(
            """
            SELECT query, document FROM candidates
            WHERE NOT EXISTS (SELECT 1 FROM documents WHERE id = document) ORDER BY query, place
            """
        ).fetchall()
        for query, document in missing:
            self._bad.add(
                FileProblem(f"{self._corpus} has no document {document!r}, which the run has for query {query!r}.")
            )
        if missing:
            self._data.execute("DELETE FROM candidates WHERE NOT EXISTS (SELECT 1 FROM documents WHERE id = document)")


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The documents of a query, read from the database as they are asked for."""

    data: sqlite3.Connection
    query: str
    all: bool

    def count(self) -> int:
        return int(self.data.execute("SELECT count(*) FROM candidates WHERE query = ?", (self.query,)).fetchone()[0])

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        if self.all:
            found = self.data.execute("SELECT id, value FROM documents ORDER BY place")
        else:
            found = self.data.execute(
                "SELECT id, value FROM candidates JOIN documents ON id = document WHERE query = ? "
                "ORDER BY candidates.place",
                (self.query,),
            )
        for id, value in found:
            yield id, to_content(json.loads(value), f"document {id!r}")


def texts_of(path: str, what: Literal["queries", "corpus"], ids: Container[str], bad: BadLines) -> dict[str, str]:
    """The texts of a file of queries or documents, or of a BEIR folder, of those ids. Raises FileProblem."""
    source = Source(_inside(path, what))
    found: dict[str, str] = {}
    for number, row in rows(source, TEXTS, bad):
        try:
            id, value = _text(source, number, row)
        except BadLine as problem:
            bad.add(problem)
            continue
        if id in ids:
            found.setdefault(id, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return found


def _inside(path: str, name: str) -> str:
    """The file of that name where `path` is a BEIR folder, else `path`. Raises FileProblem for a folder without it."""
    if not Path(path).is_dir():
        return path
    for suffix in ("", *COMPRESSIONS):
        if (file := Path(path, f"{name}.jsonl{suffix}")).is_file():
            return str(file)
    raise FileProblem(f"{path} holds no {name}.jsonl.")


def _text(source: Source, number: int, row: dict[str, Any]) -> tuple[str, Any]:
    """The id and the JSON value of a row of texts. Raises BadLine."""
    cells = TEXTS.read(row)
    if cells.get("id") is None:
        raise BadLine(source.name, number, "has no `id`.")
    id = well_formed(str(cells["id"]))
    title, text = cells.get("title"), cells.get("text")
    media = {name: cells[name] for name in ("image", "video") if name in cells}
    if title and not isinstance(title, str):
        raise BadLine(source.name, number, "`title` is not a string.")
    if isinstance(text, str) and title:
        # As BEIR joins them.
        text = f"{title} {text}".strip()
    value: Any = {"text": text, **media} if media else title if text is None else text
    if value is None:
        raise BadLine(source.name, number, "has no `text`.")
    if not isinstance(value, str):
        try:
            to_content(value, "text")
        except InvalidRequest as error:
            raise BadLine(source.name, number, f"{error}.") from None
    return id, value


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


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
