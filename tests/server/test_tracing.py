"""Traces, as a collector of OpenTelemetry's gets them from a server that was started for it."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.server.launched import LAUNCH_SERVER, SERVE, launched

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
BODY = {"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]}


@dataclass
class Collector:
    """Takes OTLP on `endpoint`."""

    endpoint: str = ""
    requests: queue.Queue[tuple[str, ExportTraceServiceRequest]] = field(default_factory=queue.Queue)

    def spans(self) -> tuple[dict[str, Any], list[Span]]:
        """The attributes of who sent them, and all spans that came so far."""
        resource: dict[str, Any] = {}
        spans: list[Span] = []
        while not self.requests.empty():
            for group in self.requests.get()[1].resource_spans:
                resource = values(group.resource)
                spans += [span for scope in group.scope_spans for span in scope.spans]
        return resource, spans


def values(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


@contextmanager
def over_http() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            collector.requests.put((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


@contextmanager
def over_grpc() -> Iterator[Collector]:
    collector = Collector()

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
            collector.requests.put(("grpc", request))
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    collector.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None)


def test_a_call_and_its_stages_reach_the_collector(bert_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with over_http() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        with launched(
            SERVE, str(bert_checkpoint), "--served-model-name", "m", "--max-num-batched-tokens", "1"
        ) as server:
            headers = {"traceparent": TRACEPARENT, "X-Request-Id": "mine", "User-Agent": "me"}
            answer = requests.post(f"{server.url}/cohere/v1/rerank", json=BODY, headers=headers, timeout=60)
            assert answer.status_code == 200
            requests.get(f"{server.url}/health", timeout=30)
            requests.get(f"{server.url}/nowhere", timeout=30)
            server.stop()  # what is left is sent before the end
        path = collector.requests.queue[0][0]
        resource, spans = collector.spans()
    assert path == "/v1/traces"
    assert resource["service.name"] == "rerankd"
    assert resource["deployment.environment.name"] == "test"
    assert sorted(span.name for span in spans) == [
        "GET", "POST /cohere/v1/rerank", "model", "model", "queue", "tokenise",
    ]  # fmt: skip
    (call,) = [span for span in spans if span.name.startswith("POST")]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.kind == Span.SPAN_KIND_SERVER
    said = values(call)
    tokens = said.pop("gen_ai.usage.input_tokens")
    assert said.pop("rerankd.computed_tokens") == tokens > 0
    assert said == {
        "http.request.method": "POST",
        "http.route": "/cohere/v1/rerank",
        "http.response.status_code": 200,
        "url.path": "/cohere/v1/rerank",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "user_agent.original": "me",
        "gen_ai.request.model": "m",
        "rerankd.dialect": "cohere",
        "rerankd.request_id": "mine",
        "rerankd.documents": 2,
        "rerankd.documents_truncated": 0,
    }
    stages = sorted(
        (span for span in spans if span.parent_span_id == call.span_id), key=lambda span: span.start_time_unix_nano
    )
    assert [span.name for span in stages] == ["tokenise", "queue", "model", "model"]
    assert all(span.trace_id == call.trace_id for span in stages)
    edges = [edge for span in stages for edge in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert edges == sorted(edges)
    assert call.start_time_unix_nano <= edges[0]
    assert edges[-1] <= call.end_time_unix_nano
    (lost,) = [span for span in spans if span.name == "GET"]
    assert not lost.parent_span_id
    assert values(lost)["http.response.status_code"] == 404
    assert lost.status.code == Status.STATUS_CODE_UNSET


@pytest.mark.parametrize("program", [SERVE, LAUNCH_SERVER])
def test_the_flags_of_vllm_and_sglang(bert_checkpoint: Path, program: tuple[str, ...]) -> None:
    model = str(bert_checkpoint)
    with over_grpc() as collector:
        arguments = {
            SERVE: [model, "--otlp-traces-endpoint", f"http://{collector.endpoint}"],
            LAUNCH_SERVER: ["--model", model, "--enable-trace", "--otlp-traces-endpoint", collector.endpoint],
        }
        with launched(program, *arguments[program]) as server:
            requests.post(f"{server.url}/v1/rerank", json=BODY, timeout=60)
            server.stop()
        _, spans = collector.spans()
    assert sorted(span.name for span in spans) == ["POST /v1/rerank", "model", "queue", "tokenise"]


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_nothing_is_loaded_that_nobody_asks_for(variables: dict[str, str], loaded: bool) -> None:
    script = (
        "import sys\n"
        "from rerankd.cli.start import Launch, _traces\n"
        "launch = Launch('m')\n"
        "print(_traces(launch, 'm') is not None, 'opentelemetry.sdk.trace' in sys.modules)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, env=clean | variables
    )
    assert done.stdout.split() == [str(loaded)] * 2


@pytest.mark.parametrize(
    ("flags", "variables", "code", "says"),
    [
        ([], {"OTEL_TRACES_EXPORTER": "otlp"}, 0, "WARNING:  No traces: .*pip install 'rerankd\\[otel\\]'"),
        (["--otlp-traces-endpoint", "http://x:1"], {}, 1, "rerankd: error: .*pip install 'rerankd\\[otel\\]'"),
    ],
)
def test_without_the_extra_it_says_so(
    flags: list[str], variables: dict[str, str], code: int, says: str, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "import rerankd.reranker\n"
        "def load(options): raise SystemExit(0)\n"
        "rerankd.reranker.Reranker = load\n"
        f"sys.argv = ['rerankd', 'serve', {str(tmp_path)!r}, '--port', '0', *{flags!r}]\n"
        "from rerankd.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == code, done.stderr
    assert re.search(says, done.stderr)
