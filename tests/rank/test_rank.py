"""Ranking files: equal to the Python face, resumed to the byte, and through every API."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerankd import Reranker
from rerankd.cli.default_model import Choice
from rerankd.cli.main import _rerankd
from rerankd.core import InvalidRequest, RerankdError, RerankRequest, text_content
from rerankd.rank import local
from rerankd.rank.collection import Collection
from rerankd.rank.files import BadLines, Source
from rerankd.rank.local import LocalScorer
from rerankd.rank.pairs import Pairs
from rerankd.rank.rank import Output, Progress, Summary, rank
from rerankd.rank.runs import read_run
from rerankd.rank.scoring import Block, QueryScores, RankSettings
from tests.server.launched import environment

COLLECTION = Path(__file__).parents[1] / "collection"
RANK = (sys.executable, "-m", "rerankd", "rank")
PLAIN = RankSettings()
QUERIES = [json.loads(line) for line in (COLLECTION / "queries.jsonl").read_text().splitlines()]


def collection(top_k: int | None = None, bad: BadLines | None = None) -> Collection:
    return Collection(str(COLLECTION), str(COLLECTION), [str(COLLECTION / "bm25.trec")], top_k, bad or BadLines())


def ranked(scorer: Any, output: Path, queries: Any = None, settings: RankSettings = PLAIN, **more: Any) -> Summary:
    about = more.pop("about", {"model": "m"})
    format = output.suffix.removeprefix(".")
    bad = more.pop("bad", BadLines())
    given = collection() if queries is None else queries
    return rank(given, scorer, settings, Output(str(output), format, "tag"), about, bad, progress=False, **more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rankings_are_those_of_the_python_face(bert_checkpoint: Path, tmp_path: Path) -> None:
    corpus = {one["_id"]: f"{one['title']} {one['text']}".strip() for one in lines(COLLECTION / "corpus.jsonl")}
    candidates: dict[str, list[str]] = {}
    for hit in read_run(Source(str(COLLECTION / "bm25.trec")), BadLines()):
        candidates.setdefault(hit.query, []).append(hit.document)
    texts = [[corpus[id] for id in candidates[query["_id"]]] for query in QUERIES]
    with Reranker(str(bert_checkpoint), dtype="float32") as reranker:
        said = ranked(LocalScorer(reranker), tmp_path / "out.jsonl")
        results = reranker.rerank([query["text"] for query in QUERIES], texts)
    written = lines(tmp_path / "out.jsonl")
    assert [one["query_id"] for one in written] == [one["_id"] for one in QUERIES]
    for query, one, expected in zip(QUERIES, written, results, strict=True):
        ids = candidates[query["_id"]]
        scores = {ids[document.index]: document.score for document in expected.documents}
        assert {found["id"]: found["score"] for found in one["results"]} == pytest.approx(scores, abs=1e-5)
        assert [ids[found["index"]] for found in one["results"]] == [found["id"] for found in one["results"]]
        falling = [found["score"] for found in one["results"]]
        assert falling == sorted(falling, reverse=True)
        assert one["scored"] == 16
    assert len({found["score"] for one in written for found in one["results"]}) > 100
    assert (said.queries, said.documents, said.kept, said.bad) == (12, 12 * 16, 0, 0)
    assert not (tmp_path / "out.jsonl.part").exists()


def test_what_is_cut_is_told(reranker: Reranker, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"query": "what", "documents": ["short", "long " * 600]}))
    said = ranked(LocalScorer(reranker), tmp_path / "out.jsonl", Pairs(str(path), None, BadLines()))
    (one,) = lines(tmp_path / "out.jsonl")
    assert {found["id"]: found["truncated"] for found in one["results"]} == {"0": False, "1": True}
    assert (one["query_truncated"], said.truncated) == (False, 1)
    assert "; 1 document was cut to fit" in str(said)
    assert "query was cut" not in str(said)


@pytest.mark.parametrize("settings", [RankSettings(top_n=1), RankSettings(min_score=2)])
def test_what_is_cut_counts_where_it_is_not_written(settings: RankSettings, reranker: Reranker, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"query": word, "documents": ["long " * 600, "longer " * 600]} for word in ("what", "how " * 600)]
    path.write_text("\n".join(map(json.dumps, rows)))
    said = ranked(LocalScorer(reranker), tmp_path / "out.jsonl", Pairs(str(path), None, BadLines()), settings)
    assert (said.truncated, said.queries_truncated) == (4, 1)
    assert "; 1 query was cut to fit; 4 documents were cut to fit" in str(said)


@pytest.mark.parametrize("tag", ["my tag", "tab\tbed", " ", ""])
def test_a_tag_is_one_column(tag: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"query": "what", "documents": ["a"]}')
    words = ["rank", "m", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out.trec"), "--tag", tag]
    done = CliRunner().invoke(_rerankd(), words)
    assert done.exit_code == 1
    assert f"--tag: {tag!r} is empty or has white space" in done.stderr


def test_top_n_and_min_score(reranker: Reranker, tmp_path: Path) -> None:
    ranked(LocalScorer(reranker), tmp_path / "all.jsonl")
    every = [[(found["id"], found["score"]) for found in one["results"]] for one in lines(tmp_path / "all.jsonl")]
    bound = sorted(score for one in every for _, score in one)[100]
    ranked(LocalScorer(reranker), tmp_path / "some.jsonl", settings=RankSettings(top_n=3, min_score=bound))
    some = [[(found["id"], found["score"]) for found in one["results"]] for one in lines(tmp_path / "some.jsonl")]
    assert some == [[(id, score) for id, score in one if score >= bound][:3] for one in every]
    assert any(len(one) < 3 for one in some)


def test_equal_documents_keep_their_order_however_long_the_list(
    reranker: Reranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "BLOCK_DOCUMENTS", 8)
    documents = [{"id": f"{n}", "text": ["same", "other"][n % 2]} for n in range(50, 0, -1)]
    (tmp_path / "p.jsonl").write_text(json.dumps({"query": "what", "documents": documents}))
    fp32 = LocalScorer(reranker)
    ranked(fp32, tmp_path / "out.jsonl", Pairs(str(tmp_path / "p.jsonl"), None, BadLines()))
    (one,) = lines(tmp_path / "out.jsonl")
    for parity in (0, 1):
        group = [found for found in one["results"] if int(found["id"]) % 2 == parity]
        for earlier, later in pairwise(group):
            assert earlier["score"] > later["score"] or earlier["index"] < later["index"]
    assert one["scored"] == 50


def test_a_whole_corpus_without_a_run(reranker: Reranker, tmp_path: Path) -> None:
    whole = Collection(str(COLLECTION), str(COLLECTION), [], None, BadLines())
    said = ranked(LocalScorer(reranker), tmp_path / "out.trec", whole, RankSettings(top_n=2))
    assert said.documents == 12 * 48
    assert len((tmp_path / "out.trec").read_text().splitlines()) == 24


def test_top_k_needs_a_run() -> None:
    with pytest.raises(RerankdError, match="--top-k: takes the first documents of a run"):
        Collection(str(COLLECTION), str(COLLECTION), [], 3, BadLines())


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_the_lowest_score_is_a_number(score: float) -> None:
    with pytest.raises(InvalidRequest, match="min_score: must be a finite number"):
        RankSettings(min_score=score)


def test_an_instruction_without_effect_is_told(reranker: Reranker, tmp_path: Path) -> None:
    line = json.dumps({"query": "what", "documents": ["a", "b"], "instruction": "match"}) + "\n"
    (tmp_path / "p.jsonl").write_text(3 * line)
    said: list[str] = []
    bad = BadLines(tell=said.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "tell", lambda bar, text: said.append(text))
        ranked(LocalScorer(reranker), tmp_path / "out.jsonl", Pairs(str(tmp_path / "p.jsonl"), None, bad), bad=bad)
    assert said == ["ignored, or applied only in part: instruction"]


@pytest.mark.parametrize(("path", "shown"), [("-", "7doc ["), ("p.jsonl", "50%|")])
def test_progress_of_a_file_and_of_standard_input(
    path: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text("{}\n")
    with Progress(Pairs(path, None, BadLines()), True) as bar:
        monkeypatch.setattr(Pairs, "fraction", None if path == "-" else 0.5)
        bar.add(7)
    assert shown in capsys.readouterr().err


def test_a_query_with_the_usual_candidates_is_a_block_of_its_own(reranker: Reranker) -> None:
    """So that a stopped run on a slow machine does no finished query again."""
    assert LocalScorer(reranker).block_documents <= 100


def test_a_file_alone_is_ranked_by_the_default_model(
    bert_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = Choice(str(bert_checkpoint), ("default",), "No model was named: serving it.")
    monkeypatch.setattr("rerankd.cli.default_model.default_model", lambda: choice)
    pairs, output = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    pairs.write_text('{"query": "what", "documents": ["a", "b"]}\n')
    done = CliRunner().invoke(_rerankd(), ["rank", str(pairs), "-o", str(output), "--no-progress"])
    assert done.exit_code == 0, done.output
    assert len(lines(output)[0]["results"]) == 2


def test_the_command_reads_stdin_and_writes_stdout(bert_checkpoint: Path) -> None:
    sent = "\n".join(
        json.dumps(one)
        for one in [{"id": "x", "query": "what", "documents": ["a", "b"]}, {"query": "who", "documents": ["c"]}]
    )
    command = [*RANK, str(bert_checkpoint), "-", "--dtype", "float32", "--top-n", "1", "--no-progress"]
    done = subprocess.run(command, input=sent, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert [first[0], first[3], first[5]] == ["x", "1", f"{bert_checkpoint.name}@float32"]
    assert second[:4] == ["2", "Q0", "0", "1"]
    assert "2 queries, 3 documents; " in done.stderr


class Reversed:
    """Finishes its blocks in pairs, the second before the first; `look` is called before each pair after the first."""

    block_documents = 4

    def __init__(self, inner: Any, look: Callable[[], None]) -> None:
        self.inner, self.look = inner, look

    def score(
        self, blocks: Any, settings: RankSettings, on_documents: Any
    ) -> Iterator[tuple[Block, list[QueryScores]]]:
        done = list(self.inner.score(blocks, settings, on_documents))
        for start in range(0, len(done), 2):
            if start:
                self.look()
            yield from reversed(done[start : start + 2])


def test_standard_output_has_each_block_as_soon_as_those_before_it(
    reranker: Reranker, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    written: list[bytes] = []
    scorer = Reversed(LocalScorer(reranker), lambda: written.append(capfdbinary.readouterr().out))
    output = Output("-", "jsonl", "tag")
    said = rank(collection(), scorer, PLAIN, output, {"model": "m"}, BadLines(), progress=False)
    written.append(capfdbinary.readouterr().out)
    assert len(written) > 2
    assert all(written)
    ranked(LocalScorer(reranker), tmp_path / "out.jsonl")
    found = [json.loads(line) for line in b"".join(written).splitlines()]
    assert [one["query_id"] for one in found] == [one["query_id"] for one in lines(tmp_path / "out.jsonl")]
    for one, other in zip(found, lines(tmp_path / "out.jsonl"), strict=True):
        scores, wanted = ({each["id"]: each["score"] for each in of["results"]} for of in (one, other))
        assert scores == pytest.approx(wanted, abs=0.01)
    assert said.queries == len(found)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "Give a file of pairs, or --queries and --corpus"),
        (("p.jsonl", "--queries", "q.tsv"), "leave out --queries"),
        (("p.jsonl", "-o", "out.xyz"), "--format trec, jsonl, csv, parquet"),
        (("p.jsonl", "--instruction", "x", "-o", "out.trec"), "takes none"),
        (("bad.jsonl", "-o", "out.trec"), "bad.jsonl, line 2: is not JSON"),
        (("spaced.jsonl", "-o", "out.trec"), "cannot hold the id 'a b'"),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], problem: str, bert_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"query": "what", "documents": ["a"]}\n')
    (tmp_path / "bad.jsonl").write_text('{"query": "what", "documents": ["a"]}\noops\n')
    (tmp_path / "spaced.jsonl").write_text('{"query": "what", "documents": [{"id": "a b", "text": "a"}]}\n')
    done = subprocess.run(
        [*RANK, str(bert_checkpoint), *words, "--no-progress"],
        capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("rerankd: error: ")
    assert problem in line


def test_documents_that_cannot_be_read_are_left_out_and_listed(reranker: Reranker, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    bad_lines = [
        {"query": "a", "documents": ["fine", {"image": "x.png"}]},
        {"query": {"image": "x.png"}, "documents": ["fine"]},
        {"query": "c", "documents": ["fine"]},
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in bad_lines))
    with pytest.raises(InvalidRequest, match=r"p\.jsonl, line 1: documents\[1\]"):
        ranked(LocalScorer(reranker), tmp_path / "out.jsonl", Pairs(str(path), None, BadLines()))
    said: list[str] = []
    bad = BadLines(skip=True)
    summary = rank(
        Pairs(str(path), None, bad), LocalScorer(reranker), RankSettings(skip_bad=True),
        Output(str(tmp_path / "o.jsonl"), "jsonl", "t"), {}, bad, progress=False,
    )  # fmt: skip
    written = lines(tmp_path / "o.jsonl")
    assert [one["query_id"] for one in written] == ["1", "3"]
    assert list(written[0]["failed"]) == ["1"]
    assert "line 1: documents[1]" in written[0]["failed"]["1"]
    assert (summary.bad, bad.count, said) == (2, 2, [])


def test_what_is_queued_together_is_one_batch_whatever_the_time(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Reranker._queue

    def slowly(self: Reranker, *words: Any) -> Any:
        time.sleep(0.02)
        return queue(self, *words)

    monkeypatch.setattr(Reranker, "_queue", slowly)
    requests = [RerankRequest(text_content(f"query {n}"), (text_content("a"), text_content("b"))) for n in range(6)]
    for _ in range(3):
        before = reranker.load().batches
        for one in reranker.submit_together([reranker.prepare(request) for request in requests]):
            reranker.collect(one)
        assert reranker.load().batches == before + 1


def test_pictures_and_videos_are_ranked(qwen3_vl_checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image as Pictures

    names = []
    for number, colour in enumerate(["red", "green", "blue"]):
        names.append(str(tmp_path / f"{number}.png"))
        Pictures.new("RGB", (64, 64), colour).save(names[-1])
    documents: list[Any] = [
        "a text",
        *({"image": name} for name in names),
        {"video": names},
        {"text": "b", "image": names[0]},
    ]
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"query": {"text": "what", "image": names[1]}, "documents": documents})
    )
    with Reranker(str(qwen3_vl_checkpoint), dtype="float32") as loaded:
        ranked(LocalScorer(loaded), tmp_path / "out.jsonl", Pairs(str(tmp_path / "p.jsonl"), None, BadLines()))
        expected = loaded.rerank({"text": "what", "image": names[1]}, documents)
    (one,) = lines(tmp_path / "out.jsonl")
    assert [found["index"] for found in one["results"]] == [document.index for document in expected.documents]
    assert [found["score"] for found in one["results"]] == pytest.approx(
        [d.score for d in expected.documents], abs=1e-4
    )


def test_files_are_looked_at_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model does not exist, which is not told: the files come first."""
    there, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    there.write_text('{"query": "a", "documents": ["b"]}\n')
    out.write_text("")

    def error(command: str, *words: object) -> str:
        result = CliRunner().invoke(_rerankd(), [command, *map(str, words)])
        assert result.exit_code == 1
        return result.stderr.removeprefix("rerankd: error: ")

    model = tmp_path / "no-model"
    batch = ("run-batch", "--model", model, "-i")
    assert error("rank", model, there, "-o", out).startswith(f"{out} already exists; ")
    assert error(*batch, there, "-o", out).startswith(f"{out} already exists; ")
    assert error("rank", model, tmp_path / "none.tsv").startswith(f"{tmp_path}/none.tsv cannot be read: No such file")
    assert error(*batch, tmp_path / "none", "-o", tmp_path / "o").startswith(f"{tmp_path}/none cannot be read: No such")
    assert "there is no folder" in error("rank", model, there, "-o", tmp_path / "none" / "out.jsonl")
    assert "no-model" in error("rank", model, there, "-o", out, "--restart")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for words in (
        (model, there, "--format", "parquet", "-o", tmp_path / "o"),
        (model, out.rename(tmp_path / "p.parquet")),
    ):
        assert error("rank", *words) == "Parquet files need an extra package: pip install 'rerankd[files]'.\n"


def test_counts_have_their_nouns() -> None:
    assert str(Summary(1, 1, 0, 1, 0, 1.0)) == "1 query, 1 document; 1.0 s, 1.0 documents/s; 1 document was cut to fit"
    assert str(Summary(2, 3000, 0, 2, 1, 1.0)).endswith("; 2 documents were cut to fit; 1 left out")
