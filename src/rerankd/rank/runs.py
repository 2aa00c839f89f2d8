"""Rankings in files: TREC runs, MS MARCO's triples, JSONL, CSV and Parquet, in and out."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

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


@dataclass(frozen=True, slots=True)
class Hit:
    """A document in a run. A file without scores has its ranks' negatives for them."""

    query: str
    document: str
    score: float
    line: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document's place among its query's (`index`, from 0), its score, and whether it was cut to fit.

    truncated: None where a server did not say
    """

    id: str
    index: int
    score: float
    truncated: bool | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query's documents, best first; `scored` counts those with the ones that were left out of `results`.

    failed: why documents could not be scored, by id
    """

    query: str
    results: tuple[Ranked, ...]
    scored: int
    query_truncated: bool | None = None
    failed: Mapping[str, str] = field(default_factory=dict)


def read_run(source: Source, bad: BadLines) -> Iterator[Hit]:
    """The hits of a run, in the order of the file. Raises FileProblem."""
    form = source.format
    if form in ("jsonl", "ndjson", "json", "csv", "tsv", "parquet"):
        for number, row in rows(source, HITS, bad):
            try:
                yield from _hits(source, number, HITS.read(row))
            except BadLine as problem:
                bad.add(problem)
        return
    for number, raw in source.lines():
        if not raw.strip():
            continue
        try:
            cells = decoded(source, number, raw).split()
            if len(cells) != 6:
                raise BadLine(source.name, number, f"has {len(cells)} columns; a TREC run has 6.")
            yield Hit(cells[0], cells[2], _number(source, number, cells[4]), number)
        except BadLine as problem:
            bad.add(problem)


def _hits(source: Source, number: int, cells: Mapping[str, Any]) -> Iterator[Hit]:
    query = cells.get("query_id")
    if query is None:
        raise BadLine(source.name, number, "has no `query_id`.")
    results = cells.get("results")
    if results is None:
        results = [cells]
    if not isinstance(results, list):
        raise BadLine(source.name, number, "`results` is not a list.")
    for one in results:
        found = HITS.read(one) if isinstance(one, dict) else {}
        if found.get("id") is None:
            raise BadLine(source.name, number, "a result has no `id`.")
        if "score" in found:
            score = _number(source, number, found["score"])
        elif "rank" in found:
            score = -_number(source, number, found["rank"])
        else:
            raise BadLine(source.name, number, "has neither `score` nor `rank`.")
        yield Hit(well_formed(str(query)), well_formed(str(found["id"])), score, number)


def _number(source: Source, number: int, cell: object) -> float:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise BadLine(source.name, number, f"{cell!r} is not a number.")
    return value


def output_format(path: str, format: str | None) -> str:
    """The format of an output by its name. Raises FileProblem where that does not say."""
    found = format or SUFFIXES.get(format_of(path)) or ("trec" if path == "-" else None)
    if found is None:
        raise FileProblem(f"{path}: its suffix names no format; give --format {', '.join(FORMATS)}.")
    if found == "parquet" and path.lower().endswith(COMPRESSIONS):
        raise FileProblem(f"{path}: Parquet compresses by itself; leave the last suffix off.")
    return found


def check_ids(query: str, documents: Iterable[str], format: str) -> None:
    """Raise FileProblem for an id that the format cannot hold."""
    for id in (query, *documents) if format == "trec" else ():
        if not id or id.split() != [id]:
            raise FileProblem(
                f"A TREC run cannot hold the id {id!r}, which has a space or is empty; give --format jsonl."
            )


def write_rankings(path: str, format: str, rankings: Iterable[Ranking], tag: str) -> None:
    """Write rankings to a file that is there whole or not at all. Raises FileProblem."""
    with whole_file(path) as stream:
        WRITERS[format](stream, rankings, tag)


def _trec(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    for ranking in rankings:
        for rank, (one, score) in enumerate(zip(ranking.results, falling(ranking.results), strict=True), 1):
            stream.write(f"{ranking.query} Q0 {one.id} {rank} {score} {tag}\n".encode())


def falling(results: Sequence[Ranked]) -> Iterator[str]:
    """The scores, each below the one before it.

    trec_eval reads them as float32 and orders equal ones by id, which would lose the order of scores that round to 1.
    """
    bound = math.inf
    for one in results:
        value = _float32(one.score)
        if value >= bound:
            value = _float32_below(bound)
        bound = value
        yield f"{value:.9g}"


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _float32_below(value: float) -> float:
    """The next float32 below a float32."""
    if value == 0:
        return -_float32(2**-149)
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<i", bits - 1 if value > 0 else bits + 1))[0])


def _jsonl(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    for ranking in rankings:
        results = [
            {"id": one.id, "index": one.index, "score": one.score, "truncated": one.truncated}
            for one in ranking.results
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
        for rank, one in enumerate(ranking.results, 1):
            yield ranking.query, one.id, rank, one.score, one.index, one.truncated, ranking.query_truncated


def _csv(stream: IO[bytes], rankings: Iterable[Ranking], tag: str) -> None:
    text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    said = {True: "true", False: "false", None: ""}
    for *cells, truncated, query_truncated in _rows(rankings):
        writer.writerow([*cells, said[truncated], said[query_truncated]])
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
