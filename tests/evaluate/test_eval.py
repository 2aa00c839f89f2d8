"""`rerankd eval` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import ir_measures
import pytest
from typer.testing import CliRunner

from rerankd.cli.main import _rerankd
from rerankd.core import RerankdError
from rerankd.evaluate.dataset import Variant, variants
from tests.server.launched import environment

COLLECTION = Path(__file__).parents[1] / "collection"
QRELS = str(COLLECTION / "qrels" / "test.tsv")
BM25 = str(COLLECTION / "bm25.trec")


def evaluate(*words: str, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "rerankd", "eval", *words],
        capture_output=True, text=True, env=environment(), cwd=cwd, timeout=1500,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def ideal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that puts every judged document in its place."""
    rows = [line.split("\t") for line in Path(QRELS).read_text().splitlines()[1:]]
    path = tmp_path_factory.mktemp("runs") / "ideal.trec"
    path.write_text("".join(f"{query} Q0 {id} 1 {grade} ideal\n" for query, id, grade in rows))
    return path


def trec_qrels(folder: Path) -> str:
    """The judgments in TREC's form."""
    rows = [line.split("\t") for line in Path(QRELS).read_text().splitlines()[1:]]
    (folder / "qrels").write_text("".join(f"{query} 0 {id} {grade}\n" for query, id, grade in rows))
    return str(folder / "qrels")


def test_two_runs_are_measured_and_compared(ideal: Path, tmp_path: Path) -> None:
    words = ["--qrels", QRELS, "--run", BM25, str(ideal), "--dataset", str(COLLECTION), "--per-query", "pq.jsonl"]
    done = evaluate(
        *words, "-o", "r.md", "r.json", "r.html", "--metrics", "nDCG@10", "MRR@10", "--worst", "1", cwd=tmp_path
    )
    table, differences, *bad = done.stdout.split("\n\n")
    report = json.loads((tmp_path / "r.json").read_text())
    qrels = list(ir_measures.read_trec_qrels(trec_qrels(tmp_path)))
    for system, path in zip(report["systems"], (BM25, ideal), strict=True):
        wanted = ir_measures.calc_aggregate(
            [ir_measures.nDCG @ 10, ir_measures.RR @ 10], qrels, ir_measures.read_trec_run(str(path))
        )
        assert system["measures"] == {str(measure): value for measure, value in wanted.items()}
    first, second = report["systems"]
    assert second["measures"]["nDCG@10"] == 1.0
    against = second["against"]["nDCG@10"]
    assert against["difference"] == pytest.approx(1 - first["measures"]["nDCG@10"])
    assert against["wins"] + against["ties"] == 12
    assert against["losses"] == 0
    assert 0 < against["p"] < 0.05
    shown = f"{first['measures']['nDCG@10']:.4f}"
    assert re.search(rf"^bm25\.trec +{shown} ", table, re.MULTILINE)
    assert re.search(rf"^ideal\.trec +1\.0000 \+{against['difference']:.4f}\*", table, re.MULTILINE)
    assert "Against bm25.trec" in differences
    assert "2 tests" in differences
    assert len(bad) == 1
    assert "query q" in bad[0]
    assert f"| bm25.trec | {shown} |" in (tmp_path / "r.md").read_text()
    lines = [json.loads(line) for line in (tmp_path / "pq.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == [f"q{n}" for n in range(1, 13)]
    assert lines[0]["query"] == "how often should I water a cactus"
    told = [line["values"]["bm25.trec"]["nDCG@10"] for line in lines]
    assert sum(told) / 12 == pytest.approx(first["measures"]["nDCG@10"])


def test_the_worst_queries_have_their_texts() -> None:
    told = json.loads(
        evaluate(
            "--qrels", QRELS, "--run", BM25, "--dataset", str(COLLECTION), "--format", "json", "--worst", "2"
        ).stdout
    )
    values = told["worst"]
    assert len(values) == 2
    assert values[0]["nDCG@10"] <= values[1]["nDCG@10"]
    corpus = {one["_id"]: one for one in map(json.loads, (COLLECTION / "corpus.jsonl").read_text().splitlines())}
    for one in values:
        assert one["query"]
        assert [hit["rank"] for hit in one["top"]] == [1, 2, 3]
        for hit in (*one["top"], one["best_judged"]):
            assert hit["text"] == f"{corpus[hit['id']]['title']} {corpus[hit['id']]['text']}".strip()
        assert one["best_judged"]["grade"] == 2


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_the_page_stands_by_itself(ideal: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>run.trec"
    odd.write_text(ideal.read_text())
    evaluate("--qrels", QRELS, "--run", BM25, str(odd), "--dataset", str(COLLECTION), "-o", "r.html", cwd=tmp_path)
    text = (tmp_path / "r.html").read_text()
    page = Links()
    page.feed(text)
    assert page.links == []
    assert page.tags.count("svg") == 7
    assert page.tags.count("rect") == 6 * 2 + 12
    assert {"script", "link", "img", "b"} & set(page.tags) == set()
    assert "&lt;b&gt;run.trec" in text
    assert "url(" not in text


def test_fail_under_is_for_ci(ideal: Path) -> None:
    words = ["--qrels", QRELS, "--run", BM25, "--metrics", "AP"]
    done = evaluate(*words, "--fail-under", "nDCG@10=0.99", code=1)
    assert re.search(r"rerankd: nDCG@10 of bm25.trec is 0\.\d{4}, under 0.99\.", done.stderr)
    assert "nDCG@10" in done.stdout
    evaluate(*words, "--fail-under", "nDCG@10=0.1", "MRR@10=0.1")
    # What runs are compared with may be as bad as it is.
    evaluate("--qrels", QRELS, "--run", BM25, str(ideal), "--fail-under", "nDCG@10=0.99")


def test_missing_queries_count_and_are_told(ideal: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.trec"
    half.write_text(
        "".join(line for line in ideal.read_text().splitlines(True) if line.split()[0] < "q2") + "z Q0 d 1 1 t\n"
    )
    done = evaluate("--qrels", QRELS, "--run", str(half), "--metrics", "nDCG@10")
    assert re.search(r"^half.trec +0\.3333$", done.stdout, re.MULTILINE)
    assert "half.trec lacks 8 of 12 judged queries; each counts 0." in done.stdout
    assert "half.trec has 1 query without judgments, not counted." in done.stdout


def test_each_ranking_has_a_name_of_its_own(ideal: Path, tmp_path: Path) -> None:
    fused = str(tmp_path / "bm25.trec")
    words = ["eval", "--qrels", QRELS, "--metrics", "AP", "--format", "json", "--run", BM25]
    done = CliRunner().invoke(_rerankd(), [*words, str(ideal), "--fuse", fused])
    assert [one["name"] for one in json.loads(done.stdout)["systems"]] == ["bm25.trec", "ideal.trec", fused]
    for more, problem in (
        ([BM25], "bm25.trec is the name of two rankings"),
        (["-o", "nowhere/report.html"], "there is no folder nowhere"),
    ):
        done = CliRunner().invoke(_rerankd(), [*words, *more])
        assert (done.exit_code, problem in done.stderr) == (1, True)


def test_runs_are_fused(ideal: Path, tmp_path: Path) -> None:
    evaluate("--qrels", QRELS, "--run", BM25, str(ideal), "--fuse", "f.trec", "-o", "r.json", cwd=tmp_path)
    report = json.loads((tmp_path / "r.json").read_text())
    assert [system["name"] for system in report["systems"]] == ["bm25.trec", "ideal.trec", "f.trec"]
    wanted = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10],
        ir_measures.read_trec_qrels(trec_qrels(tmp_path)),
        ir_measures.read_trec_run(str(tmp_path / "f.trec")),
    )
    assert report["systems"][2]["measures"]["nDCG@10"] == pytest.approx(wanted[ir_measures.nDCG @ 10])


def test_a_fused_run_is_measured_as_it_was_written(tmp_path: Path) -> None:
    """`a` and `b` tie by reciprocal rank; the file has `a` first, and trec_eval would put `b` first in a tie."""
    (tmp_path / "qrels").write_text("q 0 a 1\n")
    (tmp_path / "1.trec").write_text("q Q0 a 1 2 t\nq Q0 b 2 1 t\n")
    (tmp_path / "2.trec").write_text("q Q0 b 1 2 t\nq Q0 a 2 1 t\n")
    words = ["--qrels", "qrels", "--run", "1.trec", "2.trec", "--metrics", "RR", "--format", "json", "--fuse", "f.trec"]
    report = json.loads(evaluate(*words, cwd=tmp_path).stdout)
    written = list(ir_measures.read_trec_run(str(tmp_path / "f.trec")))
    wanted = ir_measures.calc_aggregate([ir_measures.RR], ir_measures.read_trec_qrels("q 0 a 1\n"), written)
    assert report["systems"][2]["measures"] == {"RR": 1.0} == {"RR": wanted[ir_measures.RR]}


def test_files_are_not_written_over(ideal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, content in (("1.trec", Path(BM25).read_text()), ("2.trec", ideal.read_text()), ("old.trec", "old")):
        Path(path).write_text(content)
    Path("qrels.trec").write_text(Path(trec_qrels(tmp_path)).read_text())
    Path("spaced.jsonl").write_text('{"query_id": "q1", "results": [{"id": "a b", "score": 1}]}\n')
    before = {path: path.read_text() for path in Path().iterdir()}
    words = ["eval", "--qrels", "qrels.trec", "--run", "1.trec", "2.trec", "--metrics", "AP"]
    for more, problem in (
        (["--fuse", "old.trec"], "--fuse: old.trec exists already; give another file"),
        (["--fuse", "./2.trec"], "./2.trec is given twice"),
        (["--fuse", "qrels.trec"], "qrels.trec is given twice"),
        (["--fuse", "-"], "--fuse: give a file"),
        (["--fuse", "f.pdf"], "--fuse: f.pdf must end in .trec"),
        (["--fuse", "new.trec", "--per-query", "new.trec"], "new.trec is given twice"),
        (["--per-query", "1.trec"], "1.trec is given twice"),
        (["--run", "spaced.jsonl", "--fuse", "f.trec"], "--fuse: f.trec cannot hold ids with spaces"),
    ):
        done = CliRunner().invoke(_rerankd(), [*words, *more])
        assert (done.exit_code, problem in done.stderr) == (1, True), done.stderr
        assert {path: path.read_text() for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "Give --run and --qrels"),
        (("--run", BM25), "--qrels: give a file"),
        (("--qrels", QRELS, "--run", "nowhere"), "nowhere cannot be read"),
        (("--qrels", QRELS, "--run", BM25, "--metrics", "quality"), "quality is not a measure"),
        (("--qrels", QRELS, "--run", BM25, "--fail-under", "nDCG@10"), "not NAME=VALUE"),
        (("--qrels", QRELS, "--run", BM25, "--fail-under", "nDCG@10=nan"), "'nDCG@10=nan' is not NAME=VALUE"),
        (("--qrels", QRELS, "--run", BM25, "--fail-under", "nDCG@10=-inf"), "'nDCG@10=-inf' is not NAME=VALUE"),
        (("--qrels", QRELS, "--run", BM25, "--fuse", "f.trec"), "two runs or more"),
        (("--qrels", QRELS, "--run", BM25, "-o", "report.pdf"), "ends in none of"),
        (("--qrels", QRELS, "--run", BM25, "--compare", "top-k=2"), "give MODEL too"),
        (("m", "--qrels", QRELS), "--queries and --corpus"),
        (("--dataset", str(COLLECTION), "--split", "dev", "--run", BM25), "has no qrels/dev.tsv"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], problem: str) -> None:
    (line,) = evaluate(*words, code=1).stderr.splitlines()
    assert line.startswith("rerankd: error: ")
    assert problem in line


def test_variants_change_one_thing_each() -> None:
    base = Variant("m", 50, {"dtype": "auto", "quantization": None})
    found = variants(
        base, ["dtype=float32,bfloat16", "quantization=int8,none", "top-k=20", "max-model-len=128", "model=a/b"]
    )
    assert [(one.label, one.model, one.top_k, dict(one.options)) for one in found] == [
        ("dtype=float32", "m", 50, {"dtype": "float32", "quantization": None}),
        ("dtype=bfloat16", "m", 50, {"dtype": "bfloat16", "quantization": None}),
        ("quantization=int8", "m", 50, {"dtype": "auto", "quantization": "int8"}),
        ("quantization=none", "m", 50, {"dtype": "auto", "quantization": None}),
        ("top-k=20", "m", 20, dict(base.options)),
        ("max-model-len=128", "m", 50, {"dtype": "auto", "quantization": None, "max_model_len": 128}),
        ("b", "a/b", 50, dict(base.options)),
    ]
    assert variants(base, []) == [base]
    assert [one.label for one in variants(base, ["model=a/x,b/x,c/y"])] == ["a/x", "b/x", "y"]
    for item, problem in (
        ("speed=9", "is not KEY=VALUE"),
        ("top-k=0", "above 0"),
        ("dtype=", "no value"),
        ("dtype", "KEY="),
        ("top-k=5,10,5", "top-k=5 is given twice"),
    ):
        with pytest.raises(RerankdError, match=problem):
            variants(base, [item])


def test_a_model_is_ranked_and_measured(minilm_path: Path, tmp_path: Path) -> None:
    words = [
        str(minilm_path),
        "--dataset",
        str(COLLECTION),
        "--run",
        BM25,
        "--compare",
        "dtype=float32",
        "top-k=3,16",
        "--dtype",
        "float32",
    ]
    evaluate(*words, "-o", "r.json", "r.html", "--save-runs", "runs", "--no-progress", cwd=tmp_path)
    report = json.loads((tmp_path / "r.json").read_text())
    bm25, float32, three, sixteen = report["systems"]
    assert [one["name"] for one in report["systems"]] == ["bm25.trec", "dtype=float32", "top-k=3", "top-k=16"]
    assert float32["measures"] == sixteen["measures"]
    assert float32["measures"]["nDCG@10"] > bm25["measures"]["nDCG@10"] + 0.05
    assert three["measures"]["nDCG@10"] < float32["measures"]["nDCG@10"]
    assert [one.get("documents") for one in report["systems"]] == [None, 192, 36, 192]
    assert all(one["documents_per_second"] > 0 for one in (float32, three, sixteen))
    run = ir_measures.read_trec_run(str(tmp_path / "runs" / "dtype=float32.trec"))
    wanted = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], ir_measures.read_trec_qrels(trec_qrels(tmp_path)), run)
    assert float32["measures"]["nDCG@10"] == wanted[ir_measures.nDCG @ 10]
    page = Links()
    page.feed((tmp_path / "r.html").read_text())
    assert page.tags.count("circle") == 6


@pytest.mark.skipif("RERANKD_DL19" not in os.environ, reason="RERANKD_DL19 names no folder with TREC DL 2019")
@pytest.mark.timeout(1800)
def test_trec_dl_2019(minilm_path: Path, tmp_path: Path) -> None:
    """`dl19-bm25-top100.json` as RankLLM keeps it, and NIST's judgments in `dl19.qrels`."""
    folder = Path(os.environ["RERANKD_DL19"])
    queries, corpus, run = [], {}, []
    for one in json.loads((folder / "dl19-bm25-top100.json").read_text()):
        queries.append({"id": one["hits"][0]["qid"], "text": one["query"]})
        for hit in one["hits"]:
            corpus[hit["docid"]] = hit["content"]
            run.append(f"{hit['qid']} Q0 {hit['docid']} {hit['rank']} {hit['score']} bm25\n")
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in corpus.items())
    )
    (tmp_path / "bm25.trec").write_text("".join(run))
    qrels = str(folder / "dl19.qrels")
    words = [str(minilm_path), "--dataset", ".", "--qrels", qrels, "--run", "bm25.trec", "--metrics", "nDCG@10"]
    evaluate(*words, "--dtype", "float32", "-o", "r.json", "--save-runs", ".", "--no-progress", cwd=tmp_path)
    bm25, minilm = json.loads((tmp_path / "r.json").read_text())["systems"]
    assert bm25["measures"]["nDCG@10"] == pytest.approx(0.5058, abs=5e-5)
    assert minilm["measures"]["nDCG@10"] == pytest.approx(0.6424, abs=2e-3)
    (made,) = tmp_path.glob("*@float32.trec")
    for system, path in ((bm25, tmp_path / "bm25.trec"), (minilm, made)):
        wanted = ir_measures.calc_aggregate(
            [ir_measures.nDCG @ 10], ir_measures.read_trec_qrels(qrels), ir_measures.read_trec_run(str(path))
        )
        assert system["measures"]["nDCG@10"] == wanted[ir_measures.nDCG @ 10]
