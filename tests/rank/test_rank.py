"""Ranking files: equal to the Python face, resumed to the byte, and through every API."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rerankd import Reranker
from rerankd.core import InvalidRequest, RerankdError, RerankRequest, Text, text_content
from rerankd.rank import local
from rerankd.rank.files import BadLines, FileProblem, Source
from rerankd.rank.journal import Journal
from rerankd.rank.local import LocalScorer
from rerankd.rank.queries import Collection, Pairs
from rerankd.rank.rank import Output, Summary, rank
from rerankd.rank.remote import APIS, RemoteScorer, ServerError
from rerankd.rank.runs import read_run
from rerankd.rank.scoring import Block, Found, Wanted
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, fake_score, running
from tests.server.launched import environment
from tests.texts import WORDS

COLLECTION = Path(__file__).parents[1] / "collection"
RANK = (sys.executable, "-m", "rerankd", "rank")
PLAIN = Wanted()
QUERIES = [json.loads(line) for line in (COLLECTION / "queries.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reranker(bert_checkpoint: Path) -> Iterator[Reranker]:
    with Reranker(str(bert_checkpoint)) as loaded:
        yield loaded


def collection(top_k: int | None = None, bad: BadLines | None = None) -> Collection:
    return Collection(str(COLLECTION), str(COLLECTION), [str(COLLECTION / "bm25.trec")], top_k, bad or BadLines())


def ranked(scorer: Any, output: Path, queries: Any = None, wanted: Wanted = PLAIN, **more: Any) -> Summary:
    about = more.pop("about", {"model": "m"})
    format = output.suffix.removeprefix(".")
    bad = more.pop("bad", BadLines())
    given = collection() if queries is None else queries
    return rank(given, scorer, wanted, Output(str(output), format, "tag"), about, bad, progress=False, **more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rankings_are_those_of_the_python_face(reranker: Reranker, tmp_path: Path) -> None:
    said = ranked(LocalScorer(reranker), tmp_path / "out.jsonl")
    corpus = {one["_id"]: f"{one['title']} {one['text']}".strip() for one in lines(COLLECTION / "corpus.jsonl")}
    candidates: dict[str, list[str]] = {}
    for hit in read_run(Source(str(COLLECTION / "bm25.trec")), BadLines()):
        candidates.setdefault(hit.query, []).append(hit.document)
    written = lines(tmp_path / "out.jsonl")
    assert [one["query_id"] for one in written] == [one["_id"] for one in QUERIES]
    for query, one in zip(QUERIES, written, strict=True):
        ids = candidates[query["_id"]]
        expected = reranker.rerank(query["text"], [corpus[id] for id in ids])
        scores = {ids[document.index]: document.score for document in expected.documents}
        assert {found["id"]: found["score"] for found in one["results"]} == pytest.approx(scores, abs=2e-3)
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


def test_top_n_and_min_score(reranker: Reranker, tmp_path: Path) -> None:
    ranked(LocalScorer(reranker), tmp_path / "all.jsonl")
    every = [[(found["id"], found["score"]) for found in one["results"]] for one in lines(tmp_path / "all.jsonl")]
    bound = sorted(score for one in every for _, score in one)[100]
    ranked(LocalScorer(reranker), tmp_path / "some.jsonl", wanted=Wanted(top_n=3, min_score=bound))
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
    said = ranked(LocalScorer(reranker), tmp_path / "out.trec", whole, Wanted(top_n=2))
    assert said.documents == 12 * 48
    assert len((tmp_path / "out.trec").read_text().splitlines()) == 24


class Stopping:
    """A scorer that counts what it is given, and stops before a block."""

    def __init__(self, inner: Any, stop: int | None = None, error: BaseException | None = None) -> None:
        self.inner, self.stop, self.error, self.seen = inner, stop, error or KeyboardInterrupt(), list[str]()
        self.block_documents = 32

    def score(self, blocks: Any, wanted: Wanted, on_documents: Any) -> Iterator[tuple[Block, list[Found]]]:
        for block, found in self.inner.score(blocks, wanted, on_documents):
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
            assert list(journal.results()) == [[0], [1], [2]]
        assert part.read_bytes() == whole
    part.write_bytes(whole[:5])  # not even the first line is whole
    with Journal(str(output), {"a": 1}) as journal:
        assert len(journal) == 0


def test_a_journal_goes_with_its_work(reranker: Reranker, tmp_path: Path) -> None:
    output, path = tmp_path / "out.jsonl", tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"query": f"q{n}", "documents": ["a", "b"]}) + "\n" for n in range(40)))

    def go(scorer: Any, wanted: Wanted = PLAIN, **more: Any) -> Summary:
        return ranked(scorer, output, Pairs(str(path), None, BadLines()), wanted, **more)

    with pytest.raises(KeyboardInterrupt):
        go(Stopping(LocalScorer(reranker), 2))
    with pytest.raises(FileProblem, match="of a run with another min_score, top_n; "):
        go(Stopping(LocalScorer(reranker)), Wanted(top_n=1, min_score=0.1))
    with pytest.raises(FileProblem, match="of a run with another model; "):
        go(Stopping(LocalScorer(reranker)), about={"model": "other"})
    kept = path.read_text()
    path.write_text(kept.replace('q1"', 'q1?"'))
    with pytest.raises(FileProblem, match="line 1, or a line behind it, has changed"):
        go(Stopping(LocalScorer(reranker)))
    with Journal(str(tmp_path / "other"), {}), pytest.raises(FileProblem, match="is in use"):
        Journal(str(tmp_path / "other"), {})
    scorer = Stopping(LocalScorer(reranker))
    assert go(scorer, restart=True).kept == 0
    assert len(scorer.seen) == 40
    with pytest.raises(FileProblem, match=r"out\.jsonl is there already; .* --restart"):
        go(scorer)
    (tmp_path / "new.part").write_text("my notes\n")
    with pytest.raises(FileProblem, match="not a journal"):
        Journal(str(tmp_path / "new"), {})
    assert (tmp_path / "new.part").read_text() == "my notes\n"


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
    # And once more, by Ctrl-C.
    process = subprocess.Popen(command("out.trec"), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
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
    assert "Going on with out.trec.part" in done.stderr
    whole = subprocess.run(command("whole.trec"), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert "from before" not in whole.stderr
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()


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

    def score(self, blocks: Any, wanted: Wanted, on_documents: Any) -> Iterator[tuple[Block, list[Found]]]:
        done = list(self.inner.score(blocks, wanted, on_documents))
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
        Pairs(str(path), None, bad), LocalScorer(reranker), Wanted(skip_bad=True),
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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        yield url


@pytest.mark.parametrize("api", APIS)
def test_every_api_gives_the_servers_scores(api: str, server: str, tmp_path: Path) -> None:
    scorer = RemoteScorer(f"{server}/{api}", api, MODEL, request_documents=7)
    said = ranked(scorer, tmp_path / "out.jsonl")
    scorer.close()
    corpus = {one["_id"]: f"{one['title']} {one['text']}".strip() for one in lines(COLLECTION / "corpus.jsonl")}
    written = lines(tmp_path / "out.jsonl")
    assert [one["query_id"] for one in written] == [one["_id"] for one in QUERIES]
    for query, one in zip(QUERIES, written, strict=True):
        scores = [
            fake_score(text_content(query["text"]), text_content(corpus[found["id"]])) for found in one["results"]
        ]
        assert [found["score"] for found in one["results"]] == scores == sorted(scores, reverse=True)
    assert said.documents == 192


@pytest.mark.parametrize("api", ["vllm", "sglang", "tei"])
def test_a_server_says_what_was_cut(api: str, server: str, tmp_path: Path) -> None:
    documents = ["w " * 600 if n in (1, 2, 5) else "w" for n in range(7)]
    (tmp_path / "p.jsonl").write_text(json.dumps({"query": "what", "documents": documents}))
    scorer = RemoteScorer(server if api != "sglang" else f"{server}/sglang", api, MODEL)
    ranked(scorer, tmp_path / "out.jsonl", Pairs(str(tmp_path / "p.jsonl"), None, BadLines()))
    (one,) = lines(tmp_path / "out.jsonl")
    assert {found["index"] for found in one["results"] if found["truncated"]} == {1, 2, 5}
    assert all(found["truncated"] is not None for found in one["results"])


def test_the_command_asks_a_server(server: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"query": "what", "documents": ["a", "b"]}\n')
    command = [*RANK, "p.jsonl", "--server", server, "--no-progress", "-o", "out.trec"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    first, _ = (tmp_path / "out.trec").read_text().splitlines()
    scores = {str(n): fake_score((Text("what"),), (Text(text),)) for n, text in enumerate("ab")}
    assert first.split()[2] == max(scores, key=scores.__getitem__)
    assert first.split()[5] == MODEL


class Peer:
    """A server whose answers a test chooses: for each body a status and an answer."""

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[int, Any]]) -> None:
        self.calls: list[dict[str, Any]] = []
        peer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(404, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    peer.calls.append({**body, "key": self.headers.get("Authorization"), "path": self.path})
                    count = len(peer.calls)
                self._send(*answer(body, count))

            def _send(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Peer:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def results(body: dict[str, Any]) -> dict[str, Any]:
    return {"results": [{"index": i, "relevance_score": i / 10} for i in range(len(body["documents"]))]}


def three(tmp_path: Path) -> Pairs:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"query": q, "documents": ["x", "y"]}) + "\n" for q in "abc"))
    return Pairs(str(path), None, BadLines())


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with Peer(lambda body, count: (429, {}) if count % 2 else (200, results(body))) as peer:
        scorer = RemoteScorer(f"{peer.url}/v2/rerank", "cohere", "m", "secret", concurrency=1)
        said = ranked(scorer, tmp_path / "out.jsonl", three(tmp_path))
    assert said.queries == 3
    assert len(peer.calls) == 6
    assert {call["path"] for call in peer.calls} == {"/v2/rerank"}
    assert {call["key"] for call in peer.calls} == {"Bearer secret"}
    assert all(found["truncated"] is None for one in lines(tmp_path / "out.jsonl") for found in one["results"])


def test_what_a_server_refuses_is_told_by_line(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], count: int) -> tuple[int, Any]:
        return (400, {"message": "no b here"}) if body["query"] == "b" else (200, results(body))

    with Peer(answer) as peer:
        with pytest.raises(InvalidRequest, match=r"p\.jsonl, line 2: .*400: .*no b here"):
            ranked(RemoteScorer(peer.url, "vllm", "m"), tmp_path / "out.jsonl", three(tmp_path))
        said: list[str] = []
        bad = BadLines(skip=True)
        rank(
            three(tmp_path), RemoteScorer(peer.url, "vllm", "m"), Wanted(skip_bad=True),
            Output(str(tmp_path / "o.jsonl"), "jsonl", "t"), {}, bad, progress=False,
        )  # fmt: skip
    assert [one["query_id"] for one in lines(tmp_path / "o.jsonl")] == ["1", "3"]
    assert (bad.count, said) == (1, [])


def test_what_was_finished_before_an_error_is_kept(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], count: int) -> tuple[int, Any]:
        return (500, {"message": "broken"}) if body["query"] == "b" and count < 5 else (200, results(body))

    with Peer(answer) as peer:
        with pytest.raises(ServerError, match=r"500: .*broken"):
            ranked(RemoteScorer(peer.url, "vllm", "m", concurrency=1), tmp_path / "out.jsonl", three(tmp_path))
        before = len(peer.calls)
        while len(peer.calls) < 5:
            peer.calls.append({"query": "-"})
        said = ranked(RemoteScorer(peer.url, "vllm", "m", concurrency=1), tmp_path / "out.jsonl", three(tmp_path))
    assert before == 2
    assert [call["query"] for call in peer.calls[5:]] == ["b", "c"]
    assert (said.queries, said.kept) == (3, 2)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"results": [{"index": 0, "relevance_score": 1}]}, "has 1 scores for 2 documents"),
        ({"results": [{"index": 0, "score": 1}]}, "is not one of the API vllm"),
        ([], "is not one of the API vllm"),
    ],
)
def test_a_servers_answer_is_looked_at(answer: Any, problem: str, tmp_path: Path) -> None:
    with Peer(lambda body, count: (200, answer)) as peer, pytest.raises(ServerError, match=problem):
        ranked(RemoteScorer(peer.url, "vllm", "m"), tmp_path / "out.jsonl", three(tmp_path))


def test_what_an_api_has_no_field_for(server: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is not a URL"):
        RemoteScorer("localhost:8000")
    with pytest.raises(ServerError, match="cannot be reached"):
        RemoteScorer("http://127.0.0.1:1")
    (tmp_path / "p.jsonl").write_text(json.dumps({"query": "a", "documents": [{"image": "x.png"}]}))
    pairs = Pairs(str(tmp_path / "p.jsonl"), None, BadLines())
    with pytest.raises(RerankdError, match="use --api vllm"):
        ranked(RemoteScorer(server, "tei", MODEL), tmp_path / "out.jsonl", pairs)
    with pytest.raises(RerankdError, match="no field in the API voyage"):
        ranked(
            RemoteScorer(server, "voyage", MODEL), tmp_path / "o.jsonl", three(tmp_path), Wanted(instruction="match")
        )


def test_files_are_sent_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(b"pixels")
    monkeypatch.chdir(tmp_path)
    line = {
        "query": "a",
        "documents": [{"image": "x.png", "text": "t"}, {"video": f"file://{tmp_path}/x.png", "fps": 2}],
    }
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    with Peer(lambda body, count: (200, results(body))) as peer:
        for api in ("vllm", "jina"):
            pairs = Pairs(str(tmp_path / "p.jsonl"), 1 if api == "jina" else None, BadLines())
            ranked(RemoteScorer(peer.url, api, "m"), tmp_path / f"{api}.jsonl", pairs)
    data = "data:image/png;base64,cGl4ZWxz"
    assert peer.calls[0]["documents"] == [
        [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": "t"}],
        [{"type": "video_url", "video_url": {"url": data, "fps": 2}}],
    ]
    assert peer.calls[1]["documents"] == [{"image": data, "text": "t"}]
