"""Queries, a corpus and first-stage runs from files, joined in a database on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerankd.core import Content, RerankdError
from rerankd.core.counts import counted
from rerankd.rank.files import BadLine, BadLines, FileProblem, Source
from rerankd.rank.queries import Query, short_digest
from rerankd.rank.rows import rows
from rerankd.rank.runs import read_run
from rerankd.rank.texts import TEXTS, inside, text_of
from rerankd.rank.values import to_content

RRF_CONSTANT = 60
"""The constant k of reciprocal rank fusion (RRF), as Cormack, Clarke and Buettcher chose it (SIGIR 2009)."""


class Collection:
    """Queries, a corpus and first-stage runs from files. The ranks of several runs are fused by RRF.

    The documents are kept in a temporary database on disk, so that a corpus need not fit in memory. Only this process
    sees the database, and the database ends with the process. Without a run, every document is a candidate for every
    query.

    Raises FileProblem, BadLine for a run that names an unknown query, and RerankdError for `top_k` without a run: only
    a run orders the candidates.
    """

    fraction = None

    def __init__(self, queries: str, corpus: str, runs: Sequence[str], top_k: int | None, bad: BadLines) -> None:
        if top_k is not None and not runs:
            raise RerankdError(
                "--top-k: takes the first documents of a run, and there is no run; give --run, or leave out --top-k. "
                "(--top-n bounds the output.)"
            )
        self._top_k, self._bad = top_k, bad
        self._queries, self._corpus, self._all = inside(queries, "queries"), inside(corpus, "corpus"), not runs
        self.digests: dict[str, str] = {}
        try:
            self._load(runs)
        except sqlite3.Error as error:
            raise FileProblem(
                f"The documents cannot be kept in a temporary file ({error}); set TMPDIR to a folder with more space."
            ) from error

    def _load(self, runs: Sequence[str]) -> None:
        # Given an empty name, SQLite opens an unnamed temporary file in TMPDIR.
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
        self._read(self._queries, "queries", "queries")
        for number, run in enumerate(runs):
            self._read_run(number, run)
        self._fuse()
        self._read(self._corpus, "corpus", "documents")
        self._corpus_size = int(self._data.execute("SELECT count(*) FROM documents").fetchone()[0])
        if not self._corpus_size:
            raise FileProblem(f"{self._corpus} holds no document{'' if self._all else ' that a run names'}.")
        self._check_documents()
        self._note_queries_without_candidates()
        self.documents: int | None = self._count()

    def __iter__(self) -> Iterator[Query]:
        name = self._queries
        for id, line, value in self._data.execute("SELECT id, line, value FROM queries ORDER BY place"):
            candidates = _Candidates(self._data, id, self._all)
            count = self._corpus_size if self._all else candidates.count()
            if not count:
                continue
            content = to_content(json.loads(value), "query")
            yield Query(id, content, candidates, count, f"{name}, line {line}", short_digest(f"{id} {value}"))

    def _count(self) -> int:
        if self._all:
            return self._corpus_size * int(self._data.execute("SELECT count(*) FROM queries").fetchone()[0])
        return int(self._data.execute("SELECT count(*) FROM candidates").fetchone()[0])

    def _read(self, path: str, what: str, table: str) -> None:
        """Load a file of ids and texts into a table. Of a corpus, load only the documents that are candidates."""
        source = Source(path)
        keep_all = table == "queries" or self._all
        condition = "" if keep_all else " WHERE EXISTS (SELECT 1 FROM named_documents WHERE document = ?1)"
        insert = f"INSERT OR IGNORE INTO {table} (id, line, value) SELECT ?1, ?2, ?3{condition}"
        for number, row in rows(source, TEXTS, self._bad):
            try:
                id, value = text_of(source, number, row)
                added = self._data.execute(insert, (id, number, json.dumps(value, ensure_ascii=True))).rowcount
                if not added and (first := self._line(table, id)):
                    raise BadLine(source.name, number, f"the id {id!r} is already on line {first}.")
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
        query_ids = {row[0] for row in self._data.execute("SELECT id FROM queries")}

        def hits() -> Iterator[tuple[int, str, str, float, int]]:
            for place, hit in enumerate(read_run(source, self._bad)):
                if hit.query not in query_ids:
                    self._bad.add(BadLine(source.name, hit.line, f"{self._queries} has no query {hit.query!r}."))
                    continue
                yield number, hit.query, hit.document, hit.score, place

        self._data.executemany("INSERT INTO hits VALUES (?, ?, ?, ?, ?)", hits())
        self.digests[f"run {number + 1}"] = source.digest

    def _fuse(self) -> None:
        """Order each query's candidates by falling score, and equal scores by their order in the file.

        Candidates from several runs are ordered by RRF.
        """
        # A document that a run names twice counts once, at its better rank.
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
        self._data.execute("CREATE TABLE named_documents (document TEXT PRIMARY KEY) WITHOUT ROWID")
        self._data.execute("INSERT INTO named_documents SELECT DISTINCT document FROM candidates")

    def _check_documents(self) -> None:
        missing = self._data.execute(
            """
            SELECT query, document FROM candidates
            WHERE NOT EXISTS (SELECT 1 FROM documents WHERE id = document) ORDER BY query, place
            """
        )
        for query, document in missing:
            self._bad.add(
                FileProblem(f"{self._corpus} has no document {document!r}, which a run names for query {query!r}.")
            )
        self._data.execute("DELETE FROM candidates WHERE NOT EXISTS (SELECT 1 FROM documents WHERE id = document)")

    def _note_queries_without_candidates(self) -> None:
        (count,) = self._data.execute(
            "SELECT count(*) FROM queries WHERE NOT EXISTS (SELECT 1 FROM candidates WHERE query = id)"
        ).fetchone()
        if count and not self._all:
            self._bad.note(
                f"{counted(count, 'query', 'queries')} of {self._queries} left out, without a document in any run"
            )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The candidates of a query, read from the database while the caller iterates."""

    data: sqlite3.Connection
    query: str
    all: bool

    def count(self) -> int:
        return int(self.data.execute("SELECT count(*) FROM candidates WHERE query = ?", (self.query,)).fetchone()[0])

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        if self.all:
            candidates = self.data.execute("SELECT id, value FROM documents ORDER BY place")
        else:
            candidates = self.data.execute(
                "SELECT id, value FROM candidates JOIN documents ON id = document WHERE query = ? "
                "ORDER BY candidates.place",
                (self.query,),
            )
        for id, value in candidates:
            yield id, to_content(json.loads(value), f"document {id!r}")
