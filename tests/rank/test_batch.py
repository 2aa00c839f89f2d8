"""Batch files: answers are those of the server, to the last field."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from rerankd import Reranker
from rerankd.rank.batch import run_batch
from rerankd.rank.files import BadLine, BadLines, FileProblem
from rerankd.rank.journal import Journal
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running
from tests.server.launched import environment

PANDA = {"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/rerank", {"model": MODEL, **PANDA, "top_n": 1}),
    ("/rerank", {"query": "a", "texts": ["x", "y"]}),
    ("/v1/score", {"model": MODEL, "text_1": "a", "text_2": ["x", "y"]}),
    ("/score", {"queries": ["a", "b"], "items": ["x", "y"]}),
    ("/v2/rerank", {"model": MODEL, "query": "a", "documents": ["x"]}),
    ("/cohere/v1/rerank", {"query": "a", "documents": [{"text": "x"}]}),
    ("/v1/rerank", {"model": "another", **PANDA}),
    ("/v1/rerank", {"documents": ["x"]}),
    ("/v1/rerank", {"query": "break", "documents": ["x"]}),
    ("/v1/completions", {"prompt": "x"}),
]


def batch(path: Path, entries: list[tuple[str, dict[str, Any]]]) -> None:
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": url, "body": body} for n, (url, body) in enumerate(entries)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(reranker: Any, folder: Path, bad: BadLines | None = None, **more: Any) -> tuple[int, int]:
    options = {"about": {"model": "a"}, "bad": bad or BadLines(), "restart": False, "progress": False, **more}
    return run_batch(reranker, (MODEL,), str(folder / "in.jsonl"), str(folder / "out.jsonl"), **options)


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def without_names(answer: Any) -> Any:
    """An answer without what differs from call to call."""
    if not isinstance(answer, dict):
        return answer
    if "message" in answer.get("error", {}):
        return {**answer, "error": {**answer["error"], "message": answer["error"]["message"].partition(", under ")[0]}}
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


def test_answers_are_the_servers(tmp_path: Path) -> None:
    batch(tmp_path / "in.jsonl", BODIES)
    assert run(FakeReranker(), tmp_path) == (10, 4)
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        for number, ((path, body), found) in enumerate(zip(BODIES, told(tmp_path), strict=True)):
            answer = requests.post(url + path, json=body, timeout=30)
            assert found["custom_id"] == f"c{number}"
            assert found["response"]["status_code"] == answer.status_code
            assert without_names(found["response"]["body"]) == without_names(answer.json())
            assert found["error"] == (None if answer.status_code == 200 else found["response"]["body"])
            assert found["id"]
    assert [one["response"]["status_code"] for one in told(tmp_path)] == [200] * 6 + [404, 400, 500, 404]
    assert len({one["id"] for one in told(tmp_path)}) == 10


def test_limits_of_a_server_do_not_hold(tmp_path: Path) -> None:
    documents = [str(number) for number in range(10_500)]
    batch(tmp_path / "in.jsonl", [("/v1/rerank", {"query": "a", "documents": documents})])
    assert run(FakeReranker(), tmp_path) == (1, 0)
    assert len(told(tmp_path)[0]["response"]["body"]["results"]) == 10_500


def test_a_batch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["wait" if number == 5 else str(number) for number in range(40)]
    batch(tmp_path / "in.jsonl", [("/v1/rerank", {"query": query, "documents": ["x"]}) for query in asked])

    failures = [OSError("no space left")]

    def full(journal: Journal, *block: Any) -> None:
        if len(journal) == 25 and failures:
            raise failures.pop()
        kept_by(journal, *block)

    kept_by = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        first = FakeReranker()
        with pytest.raises(OSError, match="no space left"):
            run(first, tmp_path)
    assert first.cancelled == 1
    assert not (tmp_path / "out.jsonl").exists()
    _, *lines = (tmp_path / "out.jsonl.part").read_text().splitlines()
    # What the others answer before they are stopped is kept, and no call that was cancelled.
    results = [json.loads(line)["result"] for line in lines]
    assert {one["response"]["status_code"] for one in results} == {200}
    assert "c5" not in {one["custom_id"] for one in results}
    kept = len(lines)
    with pytest.raises(FileProblem, match="a run with another default_instruction, model; "):
        run(FakeReranker(), tmp_path, about={"model": "b", "default_instruction": "match"})
    second = FakeReranker()
    second.gate.set()
    assert run(second, tmp_path) == (40, 0)
    assert 25 <= kept < 40
    assert len(second.requests) == 40 - kept
    assert [one["custom_id"] for one in told(tmp_path)] == [f"c{n}" for n in range(40)]
    with pytest.raises(FileProblem, match="--restart"):
        run(second, tmp_path)


GOOD = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/rerank", "body": PANDA})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("oops", "is not JSON"),
        ('{"url": "/v1/rerank", "body": {}}', "`custom_id` is missing or not a string"),
        ('{"custom_id": "b", "body": {}}', "`url` is missing or not a string"),
        ('{"custom_id": "b", "url": "/v1/rerank"}', "`body` is missing or not an object"),
        ('{"custom_id": "b", "url": "http://x/v1/rerank", "body": {}}', "give a path"),
        ('{"custom_id": "b", "method": "GET", "url": "/health", "body": {}}', "only POST is supported"),
        (GOOD, "'a' is already on line 1"),
    ],
)
def test_bad_lines(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(BadLine, match=f"line 2: .*{problem}"):
        run(FakeReranker(), tmp_path)
    bad = BadLines(skip=True)
    assert run(FakeReranker(), tmp_path, bad, restart=True) == (1, 0)
    assert bad.count == 1


def test_the_command(bert_checkpoint: Path, tmp_path: Path) -> None:
    batch(tmp_path / "in.jsonl", [("/v1/rerank", PANDA), ("/v1/score", {"text_1": "a", "text_2": "b"})])
    command = [
        sys.executable, "-m", "rerankd", "run-batch", "-i", "in.jsonl", "-o", "out.jsonl",
        "--model", str(bert_checkpoint), "--dtype", "float32", "--served_model_name", "mine", "--enforce-eager",
    ]  # fmt: skip
    journal = json.dumps({"about": {"served_model_name": ["mine"]}}) + '\n{"block": 1}\n'
    (tmp_path / "out.jsonl.part").write_text(journal)
    refused = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    # What scores depend on is what a journal is compared by.
    named = refused.stderr.rpartition("with another ")[2].partition(";")[0].split(", ")
    assert {"model", "dtype", "device", "backend"} <= set(named)
    (tmp_path / "out.jsonl.part").unlink()
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 requests, 0 of them failed" in done.stderr
    assert "--enforce-eager" in done.stderr
    ranked, scored = (one["response"]["body"] for one in told(tmp_path))
    with Reranker(str(bert_checkpoint), dtype="float32") as reranker:
        expected = reranker.rerank(PANDA["query"], PANDA["documents"])
        assert scored["data"][0]["score"] == pytest.approx(reranker.score([("a", "b")])[0], abs=1e-5)
    assert ranked["model"] == "mine"
    assert [one["index"] for one in ranked["results"]] == [one.index for one in expected.documents]
    scores = [one["relevance_score"] for one in ranked["results"]]
    assert scores == pytest.approx([one.score for one in expected.documents], abs=1e-5)
