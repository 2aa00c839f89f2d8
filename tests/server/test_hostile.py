"""Bodies that would cost minutes, gigabytes or the event loop: a real server lives through each of them."""

from __future__ import annotations

import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from rerankd.limits import RequestLimits
from tests.server.launched import SERVE, Launched, launched
from tests.server.test_clients_that_leave import open_call, until

GIGABYTE = 1 << 30
JSON = {"Content-Type": "application/json"}
QUICK = {"query": "quick", "documents": ["a"]}
# Nobody reads what these servers print.
QUIET = "--disable-uvicorn-access-log"


@pytest.fixture(scope="module")
def server(bert_checkpoint: Path) -> Iterator[Launched]:
    with launched(SERVE, str(bert_checkpoint), QUIET) as started:
        resource.prlimit(started.process.pid, resource.RLIMIT_DATA, (4 * GIGABYTE, 4 * GIGABYTE))
        yield started


def peak(server: Launched) -> int:
    """The most bytes that the server's process ever had resident."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def survived(server: Launched, path: str, body: bytes) -> requests.Response:
    """The answer to a body, while whose work `/health` answers, and behind which the next request is answered."""
    answers: list[requests.Response] = []
    call = threading.Thread(
        target=lambda: answers.append(requests.post(server.url + path, data=body, headers=JSON, timeout=240))
    )
    call.start()
    while call.is_alive():
        assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
        call.join(0.2)
    assert requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code == 200
    assert server.process.poll() is None
    assert peak(server) < 2.5 * GIGABYTE
    return answers[0]


def repeated(element: bytes, count: int, **fields: Any) -> bytes:
    """A body of that many equal documents, written without being held."""
    rest = json.dumps({"query": "a", **fields})[1:].encode()
    return b'{"documents": [' + b",".join([element] * count) + b"], " + rest


COLUMN = {"inputs": [{"name": "documents", "datatype": "BYTES", "shape": [20_000, 1], "data": [["a"]] * 20_000}]}
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "token ids as documents, 6 MB": ("/v1/rerank", repeated(b"1", 3_000_000), "--max-request-values"),
    "token ids as documents, 20 MB": ("/sglang/v1/rerank", repeated(b"1", 10_000_000), "--max-request-values"),
    "objects as documents, 40 MB": ("/cohere/v1/rerank", repeated(b'{"a":1}', 5_000_000), "--max-request-values"),
    "wrong elements below all limits": ("/v1/rerank", repeated(b"1", 9_000), "documents[0]"),
    "a million empty documents": ("/v1/rerank", repeated(b'""', 900_000), "--max-request-documents"),
    "many parts": ("/v1/rerank", repeated(b"[" + b",".join([b'"a"'] * 300_000) + b"]", 1), "--max-request-parts"),
    "20,000 pairs": (
        "/score",
        json.dumps({"text_1": [f"q {i}" for i in range(20_000)], "text_2": ["d"] * 20_000}).encode(),
        "--max-request-documents",
    ),
    "chunks of one token": (
        "/v1/rerank",
        repeated(json.dumps("word " * 40_000).encode(), 1, max_tokens_per_doc=1, overlap_tokens=0),
        "--max-request-chunks",
    ),
    "100,000 rank_fields": (
        "/cohere/v1/rerank",
        repeated(b'{"a": "b"}', 1_000, rank_fields=[f"f{i}" for i in range(100_000)]),
        "--max-request-fields",
    ),
    "300 KB of label_token_ids": (
        "/sglang/v1/score",
        json.dumps({"query": "a", "items": ["b"], "label_token_ids": [1] * 100_000}).encode(),
        "--max-request-labels",
    ),
    "prompts of a long query": (
        "/sglang/v1/score",
        json.dumps({"query": "word " * 40_000, "items": ["b"] * 2_000, "label_token_ids": [1]}).encode(),
        "--max-request-tokens",
    ),
    "token ids to embed, 6 MB": (
        "/v1/embeddings",
        b'{"input": [' + b",".join([b"1"] * 3_000_000) + b"]}",
        "--max-request-values",
    ),
    "20,000 texts to label": (
        "/predict",
        json.dumps({"inputs": [["a", "b"]] * 20_000}).encode(),
        "--max-request-documents",
    ),
    "20,000 documents as a column": (
        "/v2/models/a/infer",
        json.dumps(COLUMN).encode(),
        "--max-request-documents",
    ),
    "a shape of huge numbers": (
        "/v2/models/a/infer",
        b'{"inputs": [{"name": "query", "datatype": "BYTES", "data": ["a"], "shape": ['
        + b",".join([b"9" * 4_300] * 500)
        + b"]}, {}]}",
        "inputs[0].shape[0]",
    ),
    "texts of far too many tokens": (
        "/tei/tokenize",
        json.dumps({"inputs": ["!?.," * 60_000] * 5}).encode(),
        "--max-request-values",
    ),
    "a model's name of 20 MB": (
        "/v1/rerank",
        json.dumps({"query": "a", "documents": ["a"], "model": "m" * 20_000_000}).encode(),
        "does not exist",
    ),
    "a string of nothing but escapes, 60 MB": (
        "/v1/rerank",
        b'{"query": "a", "documents": ["' + rb"\\\"" * 15_000_000 + b'"]}',
        "--max-request-characters",
    ),
    "numbers that are not finite": ("/v1/rerank", repeated(b'{"a": NaN}', 9_000), "NaN is not a finite number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_cost_too_much_is_refused(server: Launched, case: str) -> None:
    path, body, reason = REFUSED[case]
    answer = survived(server, path, body)
    assert answer.status_code == {"/predict": 422, "/tei/tokenize": 422}.get(path, 404 if "exist" in reason else 400)
    assert reason in answer.text
    assert len(answer.content) < 10_000


def test_many_long_texts_keep_no_short_one_waiting(server: Launched) -> None:
    """Nothing in them says where they may be cut. Tokenised side by side they would have all threads."""
    long = {"query": "a", "documents": ["x" * 1_000_000]}
    clients = [open_call(server.url, long) for _ in range(8)]
    until(lambda: calls_of(server) == 8)
    assert requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code == 200
    assert calls_of(server) >= 4
    for client in clients:
        client.close()
    until(lambda: calls_of(server) == 0)
    assert peak(server) < 2.5 * GIGABYTE


def test_many_clients_that_send_halves_and_read_nothing(server: Launched) -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = json.dumps({"query": "a", "documents": ["word " * 2_000] * 2, "max_tokens_per_doc": 1}).encode()
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    halves = [
        head + b"X: " + b"y" * 60_000,
        head + b"Content-Length: 60000000\r\n\r\n" + b"[" * 60_000,
        whole * 5,
        b"",
    ]
    address = urlsplit(server.url)
    clients: list[socket.socket] = []
    for number in range(200):
        clients.append(socket.create_connection((address.hostname, address.port), timeout=30))
        clients[-1].setblocking(False)
        with suppress(OSError):  # its buffers are full
            clients[-1].send(halves[number % len(halves)])
    for _ in range(2):
        assert requests.get(f"{server.url}/health", timeout=30).status_code == 200
        assert requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code in (200, 429)
    for client in clients:
        client.close()
    until(lambda: requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code == 200)
    until(lambda: calls_of(server) == 0)
    assert peak(server) < 2.5 * GIGABYTE


def test_many_pairs_are_scored(server: Launched) -> None:
    body = {"text_1": [f"q {i % 2000}" for i in range(3_000)], "text_2": ["a", "b", "c"] * 1_000}
    answer = survived(server, "/score", json.dumps(body).encode())
    assert answer.status_code == 200
    scores = [one["score"] for one in answer.json()["data"]]
    alone = requests.post(f"{server.url}/score", json={"text_1": "q 7", "text_2": ["b"]}, timeout=60).json()
    assert scores[7] == pytest.approx(alone["data"][0]["score"], abs=1e-5)
    assert len(scores) == 3_000


def test_many_documents_that_cannot_be_read_are_left_out(server: Launched) -> None:
    """Each is found in one reading of the long query, not in one of its own."""
    picture = b'[{"type": "image_url", "image_url": {"url": "data:,"}}]'
    body = repeated(b'"a word",' + picture, 3_000, query="word " * 30_000, on_error="skip")
    answer = survived(server, "/v1/rerank", body)
    assert answer.status_code == 200
    results, failed = answer.json()["results"], answer.json()["failed"]
    assert sorted(one["index"] for one in results) == list(range(0, 6_000, 2))
    assert [one["index"] for one in failed] == list(range(1, 6_000, 2))
    assert {one["param"] for one in failed} == {f"documents[{index}]" for index in range(1, 6_000, 2)}


LOW = RequestLimits(values=20_000, documents=3, parts=4, fields=2, labels=2, chunks=5, tokens=150)
ABOVE: dict[str, tuple[str, dict[str, Any]]] = {
    "values": ("/v1/rerank", {"query": "a", "documents": ["a"], "user": [1] * 20_001}),
    "documents": ("/voyage/rerank", {"query": "a", "documents": ["a"] * 4}),
    "parts": ("/v1/rerank", {"query": ["a"] * 3, "documents": [["b", "c"]]}),
    "fields": ("/cohere/v1/rerank", {"query": "a", "documents": [{"a": "b"}], "rank_fields": ["a", "b", "c"]}),
    "labels": ("/sglang/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1, 2, 3]}),
    "chunks": (
        "/v1/rerank",
        {"query": "a", "documents": ["a b c d e f"], "max_tokens_per_doc": 1, "overlap_tokens": 0},
    ),
    "tokens": ("/v1/rerank", {"query": "a " * 60, "documents": ["a"] * 3, "return_documents": False}),
}


def test_each_limit_has_a_flag_that_its_error_names(bert_checkpoint: Path) -> None:
    flags = [f"--max-request-{name}={getattr(LOW, name)}" for name in ABOVE]
    with launched(SERVE, str(bert_checkpoint), QUIET, *flags) as low:
        for name, (path, body) in ABOVE.items():
            answer = requests.post(low.url + path, json=body, timeout=60)
            assert answer.status_code == 400, (name, answer.text)
            assert f"a larger --max-request-{name}" in answer.text
        tei = {"query": "a", "texts": ["a"] * 4}
        answer = requests.post(f"{low.url}/tei/rerank", json=tei, timeout=60)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")
        assert requests.get(f"{low.url}/tei/info", timeout=60).json()["max_client_batch_size"] == 3
        assert requests.post(f"{low.url}/v1/rerank", json=QUICK, timeout=60).status_code == 200


# Tokenising that goes on for ever, and looks between its slices whether anybody waits for it, or never looks.
ENDLESS = """
import sys, time
from rerankd import work
from rerankd.cli.main import main
from rerankd.prompts.tokenizer import LoadedTokenizer

ids = LoadedTokenizer.ids

def endless(self, texts, special=False):
    while any("endless" in text for text in texts):
        {look}
        time.sleep(0.01)
    return ids(self, texts, special)

LoadedTokenizer.ids = endless
sys.argv[0] = "rerankd"
main()
"""
LOOKING, BLIND = ENDLESS.format(look="work.check()"), ENDLESS.format(look="pass")
KILLED = 128 + signal.SIGTERM
WAITED_FOR = {"query": "endless", "documents": ["word " * 20_000]}


def calls_of(server: Launched) -> int:
    return int(requests.get(f"{server.url}/load", timeout=30).json()["server_load"])


def test_work_that_nobody_waits_for_stops(bert_checkpoint: Path) -> None:
    """More clients than threads leave while their texts are tokenised or wait for that: each frees place and thread."""
    with launched(("-c", LOOKING, "serve"), str(bert_checkpoint), QUIET, "--max-concurrent-requests", "20") as server:
        clients = [open_call(server.url, WAITED_FOR) for _ in range(20)]
        until(lambda: calls_of(server) == 20)
        for client in clients:
            client.close()
        until(lambda: calls_of(server) == 0)
        assert requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code == 200


def test_a_place_is_given_back_when_the_work_has_stopped(bert_checkpoint: Path, tmp_path: Path) -> None:
    began, stop = tmp_path / "began", tmp_path / "stop"
    until_stopped = BLIND.replace("while", f"import pathlib\n    while not pathlib.Path({str(stop)!r}).exists() and")
    until_stopped = until_stopped.replace("pass\n", f"pathlib.Path({str(began)!r}).touch()\n")
    program = ("-c", until_stopped, "serve")
    with launched(program, str(bert_checkpoint), QUIET, "--max-concurrent-requests", "1") as server:
        client = open_call(server.url, WAITED_FOR)
        # Before, the work would look whether anybody waits.
        until(began.exists)
        client.close()
        time.sleep(0.3)
        assert requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code == 429
        stop.touch()
        until(lambda: requests.post(f"{server.url}/v1/rerank", json=QUICK, timeout=60).status_code == 200)


def ended(server: Launched) -> int:
    """The exit code, long before the clients' patience ends."""
    return server.process.wait(timeout=40)


def test_a_signal_ends_the_server_whatever_runs(bert_checkpoint: Path) -> None:
    program, flags = ("-c", BLIND, "serve"), (QUIET, "--shutdown-timeout", "1")
    with launched(program, str(bert_checkpoint), *flags, exit_code=KILLED) as server:
        client = open_call(server.url, WAITED_FOR)
        until(lambda: calls_of(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        assert ended(server) == KILLED
        client.close()


def test_work_in_hand_is_refused_after_the_grace_period(bert_checkpoint: Path) -> None:
    with launched(("-c", LOOKING, "serve"), str(bert_checkpoint), QUIET, "--shutdown-timeout", "5") as server:
        client = open_call(server.url, WAITED_FOR)
        until(lambda: calls_of(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        assert client.recv(100).startswith(b"HTTP/1.1 503 ")
        assert ended(server) == 0


def test_a_second_signal_ends_the_server_at_once(bert_checkpoint: Path) -> None:
    program, flags = ("-c", BLIND, "serve"), (QUIET, "--shutdown-timeout", "600")
    with launched(program, str(bert_checkpoint), *flags, exit_code=KILLED) as server:
        client = open_call(server.url, WAITED_FOR)
        until(lambda: calls_of(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert ended(server) == KILLED
        client.close()
