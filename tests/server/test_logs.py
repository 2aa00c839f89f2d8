"""Logs as text and as JSON: what a line of each says of a call, and that nothing else is printed."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from rerankd.server.lines import Lines
from rerankd.server.logs import JsonFormatter, logging_config
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running
from tests.server.launched import SERVE, environment
from tests.server.test_clients_that_leave import until

BODY = {"query": "a b", "documents": ["c d", "e"]}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a server in this process logs as JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("rerankd")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield written
    log.removeHandler(handler)
    log.setLevel(level)


def logged(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_line_says_what_became_of_a_call(lines: io.StringIO) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        headers = {"X-Request-Id": "mine"}
        requests.post(f"{url}/cohere/v2/rerank?a=b", json={**BODY, "unknown": 1}, headers=headers, timeout=30)
    ignored, access = logged(lines)
    assert ignored.pop("time")[-6:] == "+00:00"
    assert ignored == {
        "level": "info",
        "logger": "rerankd",
        "message": "'mine': no effect here, or less than asked: unknown",
        "request_id": "mine",
    }
    assert 0 < access.pop("seconds") < 30
    assert re.fullmatch(r'127\.0\.0\.1:\d+ - "POST /cohere/v2/rerank\?a=b HTTP/1\.1" 200', access.pop("message"))
    assert access.pop("time")
    assert access == {
        "level": "info",
        "logger": "rerankd.access",
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/cohere/v2/rerank",
        "route": "/cohere/v2/rerank",
        "dialect": "cohere",
        "status": 200,
        "documents": 0,
        "prompt_tokens": 3,
        "stage_seconds": {},
    }


def test_calls_without_an_answer_of_a_route_have_a_line_too(lines: io.StringIO) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), keys=("k",))) as url:
        headers = {"Authorization": "Bearer k"}
        requests.get(f"{url}/nowhere", headers=headers, timeout=30)
        requests.post(f"{url}/v1/rerank", json=BODY, timeout=30)
        requests.get(f"{url}/health", timeout=30)
    said = [(one["route"], one["status"], one["dialect"]) for one in logged(lines)]
    assert said == [("none", 404, "vllm"), ("none", 401, "vllm"), ("/health", 200, None)]


def test_a_failure_is_one_line_with_its_traceback_and_its_call(lines: io.StringIO) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        answer = requests.post(f"{url}/v1/rerank", json={**BODY, "query": "break", "request_id": "ä\n"}, timeout=30)
    failure, access = logged(lines)
    assert failure["level"] == "error"
    assert failure["exception"].startswith("Traceback (most recent call last):\n")
    assert failure["exception"].endswith("RuntimeError: a secret of the engine room")
    assert failure["request_id"] == access["request_id"] == answer.headers["X-Request-Id"] == '"\\u00e4\\n"'
    assert access["status"] == 500


@pytest.mark.parametrize("access", [True, False])
def test_text_is_uvicorns_line_with_the_id(capsys: pytest.CaptureFixture[str], access: bool) -> None:
    config = logging_config("info", access=access)
    logging.config.dictConfig({**config, "disable_existing_loggers": False})
    try:
        with running(FakeReranker(), Settings(names=(MODEL,))) as url:
            requests.post(f"{url}/v1/rerank", json=BODY, headers={"X-Request-Id": "mine"}, timeout=30)
        for handler in logging.getLogger("rerankd.access").handlers:
            handler.flush()
        line = r'INFO:     127\.0\.0\.1:\d+ - "POST /v1/rerank HTTP/1\.1" 200 OK id=mine\n'
        assert re.fullmatch(line if access else "", capsys.readouterr().out)
    finally:
        for name in ("rerankd", "rerankd.access", "rerankd.said", "rerankd.said.error", "uvicorn", "uvicorn.access"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
            logging.getLogger(name).setLevel(logging.NOTSET)


def test_all_that_a_server_prints_is_json(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A library that is in trouble logs too: no collector is there.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    command = [sys.executable, *SERVE, str(bert_checkpoint), "--port", "0", "--log-format", "json", "--enforce-eager"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(json.loads(line))
            if "url" in said[-1]:
                assert "is ready" in said[-1]["message"]
                requests.post(f"{said[-1]['url']}/v1/rerank", json=BODY, timeout=60)
                server.send_signal(signal.SIGINT)
    assert server.returncode == 0
    assert [one for one in said if one["logger"].startswith("opentelemetry.")]
    assert [one for one in said if "--enforce-eager is vLLM's" in one["message"]]
    (access,) = [one for one in said if one["logger"] == "rerankd.access"]
    assert access["status"] == 200
    assert access["stage_seconds"].keys() == {"tokenise", "queue", "model"}
    assert access["prompt_tokens"] > 0
    assert len(access["trace_id"]) == 32


def test_why_a_server_does_not_start_is_json_too(tmp_path: Path) -> None:
    command = [sys.executable, *SERVE, str(tmp_path / "nothing"), "--port", "0", "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment())
    assert done.returncode == 1
    said = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    assert said[-1]["level"] == "critical"
    assert os.fspath(tmp_path) in said[-1]["message"]


def test_a_long_id_is_cut_in_the_log(lines: io.StringIO) -> None:
    long = "x" * 5_000_000
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        body = {**BODY, "request_id": long, "unknown": 1}
        assert requests.post(f"{url}/v1/rerank", json=body, timeout=60).json()["id"] == f"rerank-{long}"
        failed = requests.post(f"{url}/v1/rerank", json={**body, "query": "break"}, timeout=60)
        assert failed.status_code == 500
    assert len(logged(lines)) == 4
    assert max(map(len, lines.getvalue().splitlines())) < 10_000
    assert len(failed.text) < 1_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """A pipe that nobody reads, as a number to read from and a stream to write to."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    yield reader, stream
    os.close(reader)
    with suppress(OSError):
        stream.close()


def note(count: int) -> str:
    return f"{count} lines of the log could not be written"


def test_lines_are_written_in_order_and_none_is_lost(pipe: tuple[int, io.TextIOWrapper]) -> None:
    reader, stream = pipe
    written = Lines(stream, logging.Formatter())
    for number in range(2_000):
        written.put(f"line {number}")
    got = b""
    while got.count(b"\n") < 2_000:
        got += os.read(reader, 1 << 16)
    assert got.decode().splitlines() == [f"line {number}" for number in range(2_000)]


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: tuple[int, io.TextIOWrapper]) -> None:
    reader, stream = pipe
    written = Lines(stream, logging.Formatter())
    line = "x" * 100_000
    for _ in range(1_000):
        written.put(line)
    held = b""
    while len(held) < 4_000_000:
        held += os.read(reader, 1 << 16)
    written.flush()
    while held.count(b"\n") < held.count(b"x" * 100_000):
        held += os.read(reader, 1 << 16)
    written.put("again")
    while not held.endswith(b"again\n"):
        held += os.read(reader, 1 << 16)
    kept = held.count(line.encode())
    assert 40 <= kept <= 42
    told = [one for one in held.decode().splitlines() if not one.startswith("x")]
    assert told[-1] == "again"
    counts = [int(one.split()[0]) for one in told[:-1]]
    assert told[:-1] == [note(count) for count in counts]
    assert sum(counts) == 1_000 - kept


def test_a_stream_without_room_takes_nothing_down() -> None:
    with open("/dev/full", "w") as full:
        written = Lines(full, logging.Formatter())
        for _ in range(10):
            written.put("lost")
        written.flush()
        assert written._dropped == 10


@pytest.mark.parametrize("to", ["a pipe that nobody reads", "/dev/full"])
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_server_whose_output_nobody_takes_answers(bert_checkpoint: Path, to: str, format: str) -> None:
    """The ready line, an access line for each of many calls, and errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ("--port", str(port), "--log-format", format)
    with open("/dev/full", "w") if to == "/dev/full" else nullcontext(subprocess.PIPE) as output:
        server = subprocess.Popen(
            [sys.executable, *SERVE, str(bert_checkpoint), *flags], stdout=output, stderr=output, env=environment()
        )
        try:
            url = f"http://127.0.0.1:{port}"

            def ready() -> bool:
                assert server.poll() is None
                with suppress(requests.ConnectionError):
                    return requests.get(f"{url}/ready", timeout=30).status_code == 200
                return False

            until(ready)
            with requests.Session() as session:
                for _ in range(100):
                    assert session.get(f"{url}/{'x' * 2_000}", timeout=30).status_code == 404
                assert session.post(f"{url}/v1/rerank", json=BODY, timeout=30).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
            server.wait()
