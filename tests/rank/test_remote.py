"""Ranking by a server, with every API."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest

from rerankd.cli.rank import ApiName
from rerankd.core import Content, Image, InvalidRequest, RerankdError, Text, Video, text_content
from rerankd.rank import remote
from rerankd.rank.apis import APIS
from rerankd.rank.files import BadLines
from rerankd.rank.pairs import Pairs
from rerankd.rank.queries import Query
from rerankd.rank.rank import Output, Progress, rank
from rerankd.rank.remote import RemoteScorer, ServerError
from rerankd.rank.scoring import Block, RankSettings
from rerankd.server.settings import Settings
from tests.rank.test_rank import COLLECTION, QUERIES, RANK, lines, ranked
from tests.server.fakes import MODEL, FakeReranker, fake_score, running
from tests.server.launched import environment


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
            three(tmp_path), RemoteScorer(peer.url, "vllm", "m"), RankSettings(skip_bad=True),
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


def test_one_querys_documents_are_read_as_they_are_sent(tmp_path: Path) -> None:
    """However many they are, no more of them are in memory than are sent at a time, and these are sent together."""
    handed: list[int] = []
    together = threading.Barrier(3)

    class Documents:
        def __iter__(self) -> Iterator[tuple[str, Any]]:
            for number in range(300):
                handed.append(number)
                yield f"d{number}", text_content(f"{number}")

    def answer(body: dict[str, Any], count: int) -> tuple[int, Any]:
        together.wait(30)
        most.append(len(handed))
        scores = [{"index": i, "relevance_score": float(text)} for i, text in enumerate(body["documents"])]
        return 200, {"results": scores}

    most: list[int] = []
    query = Query("q", text_content("what"), Documents(), 300, "here", "digest")
    with Peer(answer) as peer:
        scorer = RemoteScorer(peer.url, "vllm", "m", concurrency=3, request_documents=10)
        ((_, (found,)),) = scorer.score([Block(0, (query,))], RankSettings(), lambda documents: None)
        scorer.close()
    assert [one.id for one in found.ranking().results] == [f"d{number}" for number in range(299, -1, -1)]
    assert min(most) <= 40
    assert len(peer.calls) == 30


def test_a_busy_server_is_given_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 20.0)
    with Peer(lambda body, count: (429, {})) as peer, pytest.raises(ServerError, match="21 attempts in 20 s"):
        ranked(RemoteScorer(peer.url, "vllm", "m", concurrency=1), tmp_path / "out.jsonl", three(tmp_path))


def test_fields_without_effect_are_told(server: str, tmp_path: Path) -> None:
    queries = three(tmp_path)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "tell", lambda bar, text: said.append(text))
        ranked(RemoteScorer(server, "vllm", MODEL), tmp_path / "out.jsonl", queries, RankSettings(instruction="match"))
    assert said == ["ignored, or applied only in part: instruction"]


def test_the_command_names_the_apis() -> None:
    assert get_args(ApiName) == tuple(APIS)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"results": [{"index": 0, "relevance_score": 1}]}, "has 1 score for 2 documents"),
        ({"results": [{"index": n, "relevance_score": float("nan")} for n in range(2)]}, "the score nan"),
        ({"results": [{"index": n, "relevance_score": 1e300} for n in range(2)]}, "the score 1e"),
        ({"results": [{"index": 0, "score": 1}]}, "does not have the form of the API vllm"),
        ([], "does not have the form of the API vllm"),
    ],
)
def test_a_servers_answer_is_looked_at(answer: Any, problem: str, tmp_path: Path) -> None:
    with Peer(lambda body, count: (200, answer)) as peer, pytest.raises(ServerError, match=problem):
        ranked(RemoteScorer(peer.url, "vllm", "m"), tmp_path / "out.jsonl", three(tmp_path))


def test_an_error_is_told_while_other_requests_wait(tmp_path: Path) -> None:
    """They have minutes, and nobody waits for them; their sockets are not closed under them."""
    go_on = threading.Event()

    def answer(body: dict[str, Any], count: int) -> tuple[int, Any]:
        if body["query"] != "a":
            go_on.wait(60)
        return 200, {"results": []} if body["query"] == "a" else results(body)

    with Peer(answer) as peer:
        scorer = RemoteScorer(peer.url, "vllm", "m", timeout=60)
        with pytest.raises(ServerError, match="has 0 scores"):
            ranked(scorer, tmp_path / "out.jsonl", three(tmp_path))
        assert not go_on.is_set()
        waiting = tuple(scorer._running)
        assert waiting
        scorer.close()
        go_on.set()
        assert all(one.result(timeout=30) for one in waiting)


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
            RemoteScorer(server, "voyage", MODEL),
            tmp_path / "o.jsonl",
            three(tmp_path),
            RankSettings(instruction="match"),
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


@pytest.mark.parametrize("api", APIS)
def test_parts_are_joined_as_the_engine_joins_them(api: str, server: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"query": ["wh", "at"], "documents": [["one", " t", "wo"]]}))
    scorer = RemoteScorer(f"{server}/{api}", api, MODEL)
    ranked(scorer, tmp_path / "out.jsonl", Pairs(str(tmp_path / "p.jsonl"), None, BadLines()))
    (one,) = lines(tmp_path / "out.jsonl")
    if api not in ("vllm", "sglang"):  # the others have one string
        assert one["results"][0]["score"] == fake_score((Text("what"),), (Text("one two"),))
    contents = APIS[api].content((Text("one"), Text(" t"), Text("wo")), "documents[0]")
    parts = [{"type": "text", "text": text} for text in ("one", " t", "wo")]
    assert contents == (parts if api in ("vllm", "sglang") else "one two")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ((Image("https://x/a.png", max_pixels=9),), "limits the pixels of an image, .* or use --api vllm"),
        ((Image("https://x/a.png", min_pixels=9), Text("t")), "limits the pixels of an image"),
        ((Text("t"), Image("https://x/a.png")), "one image and then texts"),
        ((Image("https://x/a.png"), Image("https://x/b.png")), "one image and then texts"),
        ((Video("https://x/a.mp4"),), "one image and then texts"),
    ],
)
def test_what_the_api_of_jina_cannot_say_is_refused(content: Content, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"documents\[0\].*{problem}"):
        APIS["jina"].content(content, "documents[0]")


def test_what_the_api_of_jina_can_say() -> None:
    image = Image("https://x/a.png")
    assert APIS["jina"].content((image,), "query") == {"image": "https://x/a.png"}
    assert APIS["jina"].content((image, Text("a "), Text("b")), "query") == {"image": "https://x/a.png", "text": "a b"}


def skipping(scorer: RemoteScorer, output: Path, sent: list[Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """What is written and said of one query with `--skip-bad`."""
    (output.parent / "p.jsonl").write_text(json.dumps({"query": "what", "documents": sent}))
    bad, said = BadLines(skip=True), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "tell", lambda bar, text: said.append(text))
        queries = Pairs(str(output.parent / "p.jsonl"), None, bad)
        ranked(scorer, output, queries, RankSettings(skip_bad=True), bad=bad)
    scorer.close()
    assert bad.count == len(said)
    written = lines(output)
    return (written[0] if written else None), said


def test_an_unreadable_document_is_left_out_alone(tmp_path: Path) -> None:
    with Peer(lambda body, count: (200, results(body))) as peer:
        scorer = RemoteScorer(peer.url, "vllm", "m", request_documents=2)
        one, said = skipping(scorer, tmp_path / "out.jsonl", ["a", "b", {"image": "gone.png"}, "d", {"image": "x"}])
    assert one is not None
    assert {found["id"]: found["score"] for found in one["results"]} == {"0": 0, "1": 0.1, "3": 0}
    assert one["scored"] == 3
    problem = f"{tmp_path}/p.jsonl, line 1: documents[{{}}]: {{}} cannot be read: No such file or directory"
    assert one["failed"] == {"2": problem.format(2, "gone.png"), "4": problem.format(4, "x")}
    assert said == [f"left out: {why}" for why in one["failed"].values()]
    assert sorted(call["documents"] for call in peer.calls) == [["a", "b"], ["d"]]


@pytest.mark.parametrize("api", ["vllm", "tei", "jina"])
def test_a_refused_document_is_left_out_alone(api: str, tmp_path: Path) -> None:
    name = APIS[api].documents

    def answer(body: dict[str, Any], count: int) -> tuple[int, Any]:
        bad = next((place for place, text in enumerate(body[name]) if text.startswith("bad")), None)
        if bad is not None:
            return 422, {"detail": [{"loc": ["body", f"{name}[{bad}]"], "msg": f"{name}[{bad}]: is bad."}]}
        found = [{"index": i, APIS[api].score: i / 10} for i in range(len(body[name]))]
        return 200, found if api == "tei" else {"results": found}

    sent = ["a", "b", "c", "bad", "e", "bad too"]
    with Peer(answer) as peer:
        scorer = RemoteScorer(peer.url, api, "m", request_documents=3)
        one, said = skipping(scorer, tmp_path / "out.jsonl", sent)
        with pytest.raises(InvalidRequest, match="422"):
            ranked(
                RemoteScorer(peer.url, api, "m"),
                tmp_path / "o.jsonl",
                Pairs(str(tmp_path / "p.jsonl"), None, BadLines()),
            )
    assert one is not None
    assert {found["id"]: found["score"] for found in one["results"]} == {"0": 0, "1": 0.1, "2": 0.2, "4": 0}
    assert list(one["failed"]) == ["3", "5"]
    assert len(said) == 2
    for place, why in one["failed"].items():
        assert f"p.jsonl, line 1: documents[{place}]: is refused: the server answered 422" in why
        assert f"{name}[{place}]: is bad." in why


def test_a_query_that_is_left_out_is_said_to_be(tmp_path: Path) -> None:
    with Peer(lambda body, count: (400, {"message": "documents[9] is one too many"})) as peer:
        one, said = skipping(RemoteScorer(peer.url, "cohere", "m"), tmp_path / "out.jsonl", ["a", "b"])
    assert one is None
    (note,) = said
    assert note.endswith("; the whole query is left out")
    assert "p.jsonl, line 1: the server: answered 400" in note


def test_a_query_without_a_readable_document_has_no_results(tmp_path: Path) -> None:
    with Peer(lambda body, count: (200, results(body))) as peer:
        one, said = skipping(RemoteScorer(peer.url, "cohere", "m"), tmp_path / "out.jsonl", [{"image": "x.png"}])
    assert one is not None
    assert (one["results"], list(one["failed"]), len(said), peer.calls) == ([], ["0"], 1, [])
