"""Reading and writing rankings: TREC runs, JSONL, CSV and Parquet. MS MARCO's triples can only be read."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from rerankd.core.counts import counted
from rerankd.rank.files import COMPRESSIONS, BadLine, BadLines, FileProblem, Source, format_of, needed, whole_file
from rerankd.rank.rows import Columns, decoded, rows
from rerankd.rank.values import well_formed

FORMATS = ("trec", "jsonl", "csv", "parquet")
SUFFIXES = {"trec": "trec", "run": "trec", "txt": "trec", "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl",
            "csv": "csv", "parquet": "parquet"}  # fmt: skip
HITS = Columns(
    names={
        "query_id": ("query_id", "qid", "query"),
        "id": ("document_id", "doc_id", "docid", "pid", "corpus_id", "id", "document"),
        "score": ("score",),
        "rank": ("rank",),
        "results": ("results",),
    },
    positions={3: ("query_id", "id", "rank")},
)
PARQUET_ROWS = 65536
"""Rows of a row group."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document in a run.

    score: if the file has ranks but no scores, the negative rank
    line: the document's line in the file, from 1
    """

    query: str
    document: str
    score: float
    line: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """A scored document.

    index: the document's place among the candidates of its query, from 0
    truncated: whether the document was cut to fit the model's context; None if a server did not say
    """

    id: str
    index: int
    score: float
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of a query's documents.

    results: the documents, best first
    scored: number of scored documents, including those that `top_n` or `min_score` left out of `results`
    query_truncated: whether the query was cut to fit; None if a server did not say
    failed: the reason for each document that could not be scored, by id
    cut: how many of the scored documents were cut to fit
    """

    query: str
    results: tuple[Ranked, ...]
    scored: int
    query_truncated: bool | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0


def read_run(source: Source, bad: BadLines) -> Iterator[Hit]:
    """The documents of a run, in the order of the file.

    The suffix gives the format; a file with another suffix, or none, is a TREC run. Raises FileProblem.
    """
    form = source.format
    if form in ("jsonl", "ndjson", "json", "csv", "tsv", "parquet"):
        for number, row in rows(source, HITS, bad):
            try:
                yield from _hits(source, number, HITS.read(row), bad)
            except BadLine as problem:
                bad.add(problem)
        return
    for number, raw in source.lines():
        if not raw.strip():
            continue
        try:
            cells = decoded(source, number, raw).split()
            if len(cells) != 6:
                raise BadLine(source.name, number, f"has {counted(len(cells), 'column')}; a TREC run has 6.")
            yield Hit(cells[0], cells[2], _number(source, number, cells[4]), number)
        except BadLine as problem:
            bad.add(problem)


def _hits(source: Source, number: int, cells: Mapping[str, Any], bad: BadLines) -> Iterator[Hit]:
    query = cells.get("query_id")
    if query is None:
        raise BadLine(source.name, number, "has no `query_id`.")
    results = cells.get("results")
    if results is None:
        results = [cells]
    if not isinstance(results, list):
        raise BadLine(source.name, number, "`results` is not a list.")
    for result in results:
        result = result if isinstance(result, dict) else {}
        HITS.note_unread(source, result, bad)
        hit = HITS.read(result)
        if hit.get("id") is None:
            raise BadLine(source.name, number, "a result has no `id`.")
        if "score" in hit:
            score = _number(source, number, hit["score"])
        elif "rank" in hit:
            score = -_number(source, number, hit["rank"])
        else:
            raise BadLine(source.name, number, "has neither `score` nor `rank`.")
        yield Hit(well_formed(str(query)), well_formed(str(hit["id"])), score, number)


def _number(source: Source, number: int, cell: object) -> float:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise BadLine(source.name, number, f"{cell!r} is not a number.")
    return value


def output_format(path: str, format: str | None) -> str:
    """The format of an output: `format`, or by the suffix of `path`. Raises FileProblem if neither gives a format."""
    name = format or SUFFIXES.get(format_of(path)) or ("trec" if path == "-" else None)
    if name is None:
        raise FileProblem(f"{path}: the suffix names no format; give --format {', '.join(FORMATS)}.")
    if name == "parquet" and path.lower().endswith(COMPRESSIONS):
        raise FileProblem(f"{path}: Parquet files are compressed already; leave the last suffix off.")
    return name


def check_ids(query: str, documents: Iterable[str], format: str) -> None:
    """Raises FileProblem for an id that the format cannot hold."""
    for id in (query, *documents) if format == "trec" else ():
        if not id or id.split() != [id]:
            raise FileProblem(
                f"A TREC run cannot hold the id {id!r}, because it is empty or has a space; give --format jsonl."
            )


def write_rankings(path: str, format: str, rankings: Iterable[Ranking], tag: str) -> None:
    """Write rankings to a file, which is either complete or absent.

    format: one of FORMATS
    tag: the name of the run, in the last column of a TREC run

    Raises FileProblem.
    """
    with whole_file(path) as stream:
        WRITERS[format](stream, rankings, tag)


def _trec(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    for ranking in rankings:
        for rank, (document, score) in enumerate(zip(ranking.results, falling(ranking.results), strict=True), 1):
            stream.write(f"{ranking.query} Q0 {document.id} {rank} {score} {tag}\n".encode())


def falling(results: Sequence[Ranked]) -> Iterator[str]:
    """The scores as text, each lowered until it is below the score before it as float32.

    trec_eval reads scores as float32 and orders equal scores by id, and so would lose the order of documents whose
    scores all round to 1.
    """
    bound = math.inf
    for document in results:
        value = _float32(document.score)
        if value >= bound:
            value = _float32_below(bound)
        bound = value
        yield f"{value:.9g}"


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _float32_below(value: float) -> float:
    """The largest float32 below a float32."""
    if value == 0:
        return -_float32(2**-149)
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<i", bits - 1 if value > 0 else bits + 1))[0])


def _jsonl(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    for ranking in rankings:
        results = [
            {"id": document.id, "index": document.index, "score": document.score, "truncated": document.truncated}
            for document in ranking.results
        ]
        line: dict[str, Any] = {
            "query_id": ranking.query,
            "results": results,
            "scored": ranking.scored,
            "query_truncated": ranking.query_truncated,
        }
        if ranking.failed:
            line["failed"] = dict(ranking.failed)
        stream.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")


COLUMNS = ("query_id", "document_id", "rank", "score", "index", "truncated", "query_truncated")


def _rows(rankings: Iterable[Ranking]) -> Iterator[tuple[Any, ...]]:
    for ranking in rankings:
        for rank, document in enumerate(ranking.results, 1):
            cells = (document.id, rank, document.score, document.index, document.truncated)
            yield ranking.query, *cells, ranking.query_truncated


def _csv(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    words = {True: "true", False: "false", None: ""}
    for *cells, truncated, query_truncated in _rows(rankings):
        writer.writerow([*cells, words[truncated], words[query_truncated]])
    text.detach()


def _parquet(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    arrow, parquet = needed("pyarrow", "Parquet files"), needed("pyarrow.parquet", "Parquet files")
    kinds = (
        arrow.string(), arrow.string(), arrow.int32(), arrow.float64(), arrow.int32(), arrow.bool_(), arrow.bool_(),
    )  # fmt: skip
    schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    waiting: list[tuple[Any, ...]] = []

    def flush() -> None:
        columns = list(zip(*waiting, strict=True)) or [()] * len(COLUMNS)
        writer.write_table(arrow.table(dict(zip(COLUMNS, columns, strict=True)), schema=schema))
        waiting.clear()

    with parquet.ParquetWriter(stream, schema) as writer:
        for row in _rows(rankings):
            waiting.append(row)
            if len(waiting) >= PARQUET_ROWS:
                flush()
        flush()


WRITERS: Mapping[str, Callable[[IO[bytes], Iterable[Ranking], str], None]] = {
    "trec": _trec,
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
}
