"""Every format in and out: round trips, bad lines by number, fused runs."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import struct
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerankd.core import Text
from rerankd.rank import files
from rerankd.rank.collection import Collection
from rerankd.rank.files import BadLines, FileProblem, Source, whole_file
from rerankd.rank.pairs import Pairs
from rerankd.rank.runs import FORMATS, Ranked, Ranking, check_ids, falling, output_format, read_run, write_rankings
from rerankd.rank.texts import TEXTS

WORDS = st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=8).filter(
    lambda text: text.split() == [text] and text.isprintable()
)
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=40).filter(
    str.strip
)
ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
SCORES = st.floats(-1e6, 1e6, width=32)
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
COLLECTION = Path(__file__).parents[1] / "collection"


@st.composite
def rankings(draw: st.DrawFn, ids: st.SearchStrategy[str]) -> list[Ranking]:
    found = []
    for query in draw(st.lists(ids, max_size=4, unique=True)):
        documents = draw(st.lists(ids, min_size=1, max_size=5, unique=True))
        scores = sorted((draw(SCORES) for _ in documents), reverse=True)
        cut = draw(st.sampled_from([True, False, None]))
        results = [Ranked(id, i, score, cut) for i, (id, score) in enumerate(zip(documents, scores, strict=True))]
        found.append(Ranking(query, tuple(results), len(results), draw(st.booleans())))
    return found


def order(path: Path) -> dict[str, list[str]]:
    """The documents of a run as its readers order them: by falling score, equal ones as they stand."""
    hits = defaultdict(list)
    for hit in read_run(Source(str(path)), BadLines()):
        hits[hit.query].append((-hit.score, hit.document))
    return {query: [id for _, id in sorted(found, key=lambda one: one[0])] for query, found in hits.items()}


@pytest.mark.parametrize(
    ("format", "compression"),
    [(format, suffix) for format in FORMATS for suffix in ("", ".gz", ".zst") if format != "parquet" or not suffix],
)
@quick
@given(data=st.data())
def test_what_is_written_is_read_again(data: st.DataObject, format: str, compression: str, tmp_path: Path) -> None:
    told = data.draw(rankings(WORDS if format == "trec" else ANY))
    path = tmp_path / f"out.{format}{compression}"
    write_rankings(str(path), format, told, "tag")
    assert order(path) == {one.query: [document.id for document in one.results] for one in told}
    if format != "trec":
        scores = {(hit.query, hit.document): hit.score for hit in read_run(Source(str(path)), BadLines())}
        assert scores == {(one.query, document.id): document.score for one in told for document in one.results}
    assert not list(tmp_path.glob(".*"))


@given(st.lists(st.floats(-1e30, 1e30), max_size=8))
def test_a_trec_runs_scores_fall_as_trec_eval_reads_them(scores: list[float]) -> None:
    scores.sort(reverse=True)
    read = [struct.unpack("f", struct.pack("f", float(one)))[0] for one in falling([Ranked("d", 0, s) for s in scores])]
    assert all(a > b for a, b in pairwise(read))
    for written, score in zip(read, scores, strict=True):
        assert written == pytest.approx(score, rel=1e-5, abs=1e-37)


def test_equal_scores_keep_their_order_in_trec_eval(tmp_path: Path) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    results = tuple(Ranked(id, index, 1.0) for index, id in enumerate(["a", "z", "m"]))
    write_rankings(str(tmp_path / "out.trec"), "trec", [Ranking("q", results, 3)], "tag")
    run = list(ir_measures.read_trec_run(str(tmp_path / "out.trec")))
    for place, id in enumerate(["a", "z", "m"], 1):
        (measured,) = ir_measures.iter_calc([ir_measures.RR], [ir_measures.Qrel("q", id, 1)], run)
        assert measured.value == 1 / place


def test_an_output_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("before")

    def break_off() -> None:
        with whole_file(str(target)) as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_parquet_is_compressed_by_itself(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="leave the last suffix off"):
        output_format("out.parquet.zst", None)
    with pytest.raises(FileProblem, match="decompress it first"):
        list(read_run(Source(str(tmp_path / "run.parquet.gz")), BadLines()))


@pytest.mark.parametrize(
    ("path", "format", "found"),
    [
        ("a.trec", None, "trec"),
        ("a.jsonl.gz", None, "jsonl"),
        ("a.CSV", None, "csv"),
        ("a", "csv", "csv"),
        ("-", None, "trec"),
    ],
)
def test_the_outputs_format(path: str, format: str | None, found: str) -> None:
    assert output_format(path, format) == found
    with pytest.raises(FileProblem, match="--format trec, jsonl, csv, parquet"):
        output_format("a.out", None)


def test_ids_that_a_trec_run_cannot_hold(tmp_path: Path) -> None:
    for id in ("a b", "", "a\tb", " a"):
        with pytest.raises(FileProblem, match="--format jsonl"):
            check_ids("q", [id], "trec")
        check_ids("q", [id], "jsonl")


Rows = Sequence[tuple[str, str]]


def write_tsv(path: Path, rows: Rows) -> None:
    path.write_bytes("".join(f"{id}\t{text}\n" for id, text in rows).encode())


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *rows])


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in rows))


def write_parquet(path: Path, rows: Rows) -> None:
    table = {"id": [id for id, _ in rows], "text": [text for _, text in rows]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


TEXT_WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def texts(queries: Collection | Pairs) -> dict[str, tuple[str, dict[str, str]]]:
    def plain(content: Any) -> str:
        (part,) = content
        assert isinstance(part, Text)
        return part.text

    return {
        query.id: (plain(query.content), {id: plain(content) for id, content in query.documents}) for query in queries
    }


@pytest.mark.parametrize("format", TEXT_WRITERS)
@quick
@given(data=st.data())
def test_texts_come_out_as_they_went_in(data: st.DataObject, format: str, tmp_path: Path) -> None:
    # A first line with the name of a column is a header.
    kind = LINES.filter(lambda text: TEXTS.meaning(text) is None) if format == "tsv" else ANY
    rows = st.lists(
        st.tuples(WORDS.filter(lambda id: "id" not in id), kind), min_size=1, max_size=5, unique_by=lambda row: row[0]
    )
    queries, corpus = data.draw(rows), data.draw(rows)
    for name, one in (("q", queries), ("c", corpus)):
        TEXT_WRITERS[format](tmp_path / f"{name}.{format}", one)
    read = texts(Collection(str(tmp_path / f"q.{format}"), str(tmp_path / f"c.{format}"), [], None, BadLines()))
    assert read == {id: (text, dict(corpus)) for id, text in queries}


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_are_read(suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    for name in ("queries.jsonl", "corpus.jsonl"):
        # Two frames, as tools that append leave them.
        data = (COLLECTION / name).read_bytes()
        half = data.index(b"\n") + 1
        (folder / f"{name}{suffix}").write_bytes(pack(data[:half]) + pack(data[half:]))
    plain, packed = (Collection(str(one), str(one), [], None, BadLines()) for one in (COLLECTION, folder))
    assert texts(packed) == texts(plain)
    assert packed.digests == plain.digests
    assert packed.documents == 12 * 48


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_without_end_takes_little_memory(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a compressed file it may have many gigabytes."""
    monkeypatch.setattr(files, "LINE_BYTES", 1 << 20)
    path = tmp_path / f"corpus.jsonl{suffix}"
    with whole_file(str(path)) as stream:
        stream.write(b'{"id": 1}\n')
        for _ in range(128):
            stream.write(bytes(1 << 20))
    lines = Source(str(path)).lines()
    tracemalloc.start()
    try:
        assert next(lines) == (1, b'{"id": 1}')
        with pytest.raises(FileProblem, match="line 2: is longer than 1,048,576 bytes"):
            next(lines)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_beir_folder_joins_title_and_text() -> None:
    collection = Collection(str(COLLECTION), str(COLLECTION), [str(COLLECTION / "bm25.trec")], 3, BadLines())
    read = texts(collection)
    assert list(read) == [f"q{number}" for number in range(1, 13)]
    assert list(read["q1"][1]) == ["d04", "d01", "d23"]
    assert read["q1"][1]["d01"].startswith("Watering desert plants A cactus wants")
    assert read["q1"][1]["d04"].startswith("How often you water")
    assert collection.documents == 36


def test_a_run_is_ordered_by_score_then_as_it_stands(tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    run.write_text("q1 Q0 d01 1 0.5 t\nq1 Q0 d02 1 2.5 t\nq1 Q0 d04 1 0.5 t\nq1 Q0 d03 1 0.5 t\nq1 Q0 d02 9 0.1 t\n")
    said: list[str] = []
    read = texts(Collection(str(COLLECTION), str(COLLECTION), [str(run)], None, BadLines(tell=said.append)))
    assert list(read["q1"][1]) == ["d02", "d01", "d04", "d03"]
    assert list(read) == ["q1"]
    assert said == [f"11 queries of {COLLECTION}/queries.jsonl left out, without a document in any run"]


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*words: Any, **more: Any) -> sqlite3.Connection:
        found = connect(*words, **more)
        found.execute("PRAGMA max_page_count = 8")
        return found

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(FileProblem, match=r"temporary file \(database or disk is full\); set TMPDIR"):
        Collection(str(COLLECTION), str(COLLECTION), [], None, BadLines())


RUN = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.lists(st.sampled_from([f"d{n:02}" for n in range(1, 12)]), min_size=1, max_size=8, unique=True),
    min_size=1,
)


@quick
@given(runs=st.lists(RUN, min_size=2, max_size=3), top_k=st.none() | st.integers(1, 5))
def test_runs_are_fused_by_reciprocal_rank(runs: list[dict[str, list[str]]], top_k: int | None, tmp_path: Path) -> None:
    paths = []
    for number, run in enumerate(runs):
        path = tmp_path / f"{number}.tsv"
        path.write_text("".join(f"{q}\t{d}\t{rank}\n" for q, found in run.items() for rank, d in enumerate(found, 1)))
        paths.append(str(path))
    read = texts(Collection(str(COLLECTION), str(COLLECTION), paths, top_k, BadLines()))
    for query, (_, documents) in read.items():
        scores: dict[str, float] = defaultdict(float)
        first: dict[str, tuple[int, int]] = {}
        for number, run in enumerate(runs):
            for rank, document in enumerate(run.get(query, ()), 1):
                scores[document] += 1 / (60 + rank)
                first.setdefault(document, (number, rank))
        # Sums that differ by rounding alone may stand either way.
        fused = [scores[document] for document in documents]
        assert all(a >= b - 1e-12 for a, b in pairwise(fused))
        wanted = sorted(scores.values(), reverse=True)[:top_k]
        assert fused == pytest.approx(wanted)
    assert set(read) == {query for run in runs for query in run}
