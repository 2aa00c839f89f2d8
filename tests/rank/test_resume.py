"""Runs that are stopped, and go on."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rerankd import Reranker
from rerankd.rank.files import BadLines, FileProblem
from rerankd.rank.journal import Journal
from rerankd.rank.local import LocalScorer
from rerankd.rank.pairs import Pairs
from rerankd.rank.rank import Output, Progress, Summary, rank
from rerankd.rank.scoring import Block, QueryScores, RankSettings
from tests.rank.test_rank import PLAIN, RANK, ranked
from tests.server.launched import environment
from tests.texts import WORDS


class Stopping:
    """A scorer that counts what it is given, and stops before a block."""

    def __init__(self, inner: Any, stop: int | None = None, error: BaseException | None = None) -> None:
        self.inner, self.stop, self.error, self.seen = inner, stop, error or KeyboardInterrupt(), list[str]()
        self.block_documents = 32

    def score(
        self, blocks: Any, settings: RankSettings, on_documents: Any
    ) -> Iterator[tuple[Block, list[QueryScores]]]:
        for block, found in self.inner.score(blocks, settings, on_documents):
            if block.number == self.stop:
                raise self.error
            self.seen += [query.id for query in block.queries]
            yield block, found


@pytest.mark.parametrize("format", ["trec", "jsonl"])
def test_a_stopped_run_goes_on_and_does_no_query_twice(reranker: Reranker, tmp_path: Path, format: str) -> None:
    whole, output = tmp_path / f"whole.{format}", tmp_path / f"out.{format}"
    ranked(Stopping(LocalScorer(reranker)), whole)
    first = Stopping(LocalScorer(reranker), 3)
    with pytest.raises(KeyboardInterrupt):
        ranked(first, output)
    assert not output.exists()
    assert first.seen == ["q1", "q2", "q3", "q4", "q5", "q6"]
    # A line that a crash has cut off is as good as none.
    part = Path(f"{output}.part")
    torn = part.read_bytes()
    part.write_bytes(torn[:-20])
    second = Stopping(LocalScorer(reranker))
    said = ranked(second, output)
    assert second.seen == ["q5", "q6", *(f"q{n}" for n in range(7, 13))]
    assert (said.kept, said.documents) == (64, 192)
    assert output.read_bytes() == whole.read_bytes()
    assert not part.exists()


def test_a_journal_that_a_crash_has_cut_off_anywhere(tmp_path: Path) -> None:
    output, part = tmp_path / "out", tmp_path / "out.part"
    with Journal(str(output), {"a": 1}) as journal:
        for block in range(3):
            journal.add(block, f"digest {block}", [block])
    whole = part.read_bytes()
    last = len(whole) - whole[:-1].rindex(b"\n") - 1
    for cut in range(last + 1):
        part.write_bytes(whole[: len(whole) - cut])
        with Journal(str(output), {"a": 1}) as journal:
            assert [journal.digest(block) for block in range(3)][:2] == ["digest 0", "digest 1"]
            assert len(journal) == (3 if cut == 0 else 2)
            if cut:
                journal.add(2, "digest 2", [2])
        with Journal(str(output), {"a": 1}) as journal:
            assert [result for result, _ in journal.results()] == [[0], [1], [2]]
        assert part.read_bytes() == whole
    part.write_bytes(whole[:5])  # not even the first line is whole
    with Journal(str(output), {"a": 1}) as journal:
        assert len(journal) == 0


def test_a_journal_goes_with_its_work(reranker: Reranker, tmp_path: Path) -> None:
    output, path = tmp_path / "out.jsonl", tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"query": f"q{n}", "documents": ["a", "b"]}) + "\n" for n in range(40)))

    def go(scorer: Any, settings: RankSettings = PLAIN, **more: Any) -> Summary:
        return ranked(scorer, output, Pairs(str(path), None, BadLines()), settings, **more)

    with pytest.raises(KeyboardInterrupt):
        go(Stopping(LocalScorer(reranker), 2))
    with pytest.raises(FileProblem, match="of a run with another min_score, top_n; "):
        go(Stopping(LocalScorer(reranker)), RankSettings(top_n=1, min_score=0.1))
    with pytest.raises(FileProblem, match="of a run with another model; "):
        go(Stopping(LocalScorer(reranker)), about={"model": "other"})
    kept = path.read_text()
    path.write_text(kept.replace('q1"', 'q1?"'))
    with pytest.raises(FileProblem, match="line 1, or a line after it, has changed"):
        go(Stopping(LocalScorer(reranker)))
    # A run that ended before its first result, such as one against a wrong server, binds the next one to nothing.
    for about in ({"model": "a"}, {"model": "b", "server": "c"}):
        with Journal(str(tmp_path / "empty"), about) as journal:
            assert len(journal) == 0
    with (tmp_path / "empty.part").open() as file:
        assert [json.loads(line) for line in file] == [{"about": {"model": "b", "server": "c"}}]
    with Journal(str(tmp_path / "other"), {}), pytest.raises(FileProblem, match="is in use"):
        Journal(str(tmp_path / "other"), {})
    scorer = Stopping(LocalScorer(reranker))
    assert go(scorer, restart=True).kept == 0
    assert len(scorer.seen) == 40
    with pytest.raises(FileProblem, match=r"out\.jsonl already exists; .* --restart"):
        go(scorer)
    (tmp_path / "listed.part").write_text('{"about": [1]}\n')
    with pytest.raises(FileProblem, match="not a journal"):
        Journal(str(tmp_path / "listed"), {})
    (tmp_path / "new.part").write_text("my notes\n")
    with pytest.raises(FileProblem, match="not a journal"):
        Journal(str(tmp_path / "new"), {})
    assert (tmp_path / "new.part").read_text() == "my notes\n"


def test_each_run_lists_all_that_is_left_out(reranker: Reranker, tmp_path: Path) -> None:
    """With packed files, the best documents alone, bad lines, documents and queries, and a run that stops."""
    lines: list[Any] = [{"id": f"q{n}", "query": f"what {n}", "documents": ["a", "b", "c"]} for n in range(60)]
    lines[2]["documents"][1] = {"image": "x.png"}
    lines[5]["query"] = {"image": "x.png"}
    lines[40]["documents"] = []
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in lines).encode()))
    settings = RankSettings(top_n=2, skip_bad=True)

    def go(output: str, stop: int | None = None) -> tuple[list[str], Summary]:
        said: list[str] = []
        bad = BadLines(skip=True)
        queries = Pairs(str(tmp_path / "p.jsonl.gz"), None, bad)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Progress, "tell", lambda bar, text: said.append(text))
            scorer = Stopping(LocalScorer(reranker), stop)
            made = Output(str(tmp_path / output), "jsonl", "t")
            summary = rank(queries, scorer, settings, made, {"model": "m"}, bad, progress=False)
        return [one for one in said if one.startswith("left out")], summary

    left_out, summary = go("whole.jsonl.gz")
    assert [re.findall(r"line (\d+)", one) for one in sorted(left_out)] == [["3"], ["41"], ["6"]]
    with pytest.raises(KeyboardInterrupt):
        go("out.jsonl.gz", 3)
    again, resumed = go("out.jsonl.gz")
    assert sorted(again) == sorted(left_out)
    assert (resumed.bad, resumed.queries, resumed.documents) == (summary.bad, summary.queries, summary.documents)
    assert resumed.kept > 90
    assert (tmp_path / "out.jsonl.gz").read_bytes() == (tmp_path / "whole.jsonl.gz").read_bytes()
    written = [json.loads(line) for line in gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).splitlines()]
    assert {len(one["results"]) for one in written} == {2}
    assert len(written) == 58


def test_killed_and_resumed_is_the_same_run_to_the_byte(bert_checkpoint: Path, tmp_path: Path) -> None:
    with (tmp_path / "p.jsonl").open("w") as file:
        for number in range(110):
            documents = [f"{number} {' '.join(WORDS[place : place + 3 + place % 7])}" for place in range(100)]
            file.write(json.dumps({"query": f"question {number}", "documents": documents}) + "\n")

    def command(output: str) -> list[str]:
        return [*RANK, str(bert_checkpoint), "p.jsonl", "-o", output]

    process = subprocess.Popen(command("out.trec"), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    part = tmp_path / "out.trec.part"
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") >= 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    finished = part.read_bytes().count(b"\n") - 1
    assert not (tmp_path / "out.trec").exists()
    # And once more, by Ctrl-C, which a shell's job in the background ignores, and so would the command.
    process = subprocess.Popen(
        command("out.trec"),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and part.read_bytes().count(b"\n") <= finished + 1:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "stopped. What is finished is in out.trec.part; the same command goes on" in said
    assert "Traceback" not in said
    done = subprocess.run(command("out.trec"), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "110 queries, 11,000 documents" in done.stderr
    assert "Resuming from out.trec.part" in done.stderr
    whole = subprocess.run(command("whole.trec"), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert "from an earlier run" not in whole.stderr
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
