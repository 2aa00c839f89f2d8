"""`rerankd bench serve` against a server on a real socket: what it sends, what it counts, what it prints."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from typer.testing import CliRunner, Result

from rerankd.bench.load import Traffic
from rerankd.bench.report import file_name
from rerankd.bench.samples import load_tokenizer
from rerankd.cli.bench import app
from rerankd.core import RerankdError
from tests import vocabularies
from tests.bench.fake_server import TOKENS_PER_DOCUMENT, Fake

MODEL = str(vocabularies.minilm_folder())


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def rows(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w.*?):\s+(\S+)\s*$", output, re.MULTILINE))


def lines(path: Path, *objects: Any) -> Path:
    path.write_text("\n".join(json.dumps(item) for item in objects) + "\n")
    return path


def test_the_command_of_vllms_document(fake: Fake, tmp_path: Path) -> None:
    result = bench(
        *("--model", MODEL, "--backend", "vllm-rerank", "--dataset-name", "random-rerank"),
        *("--endpoint", "/v1/rerank", "--random-input", 200, "--save-result", "--result-dir", tmp_path),
        *("--base-url", fake.url, "--num-prompts", 12),
    )
    assert result.exit_code == 0, result.output
    table = result.stdout[result.stdout.index("============ Serving") :]
    shape = re.sub(r"(?<=: ).*", lambda rest: re.sub(r"\d+\.\d\d\b *$", "F", rest[0]), table)
    assert shape.splitlines() == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     12        ",
        "Failed requests:                         0         ",
        "Benchmark duration (s):                  F",
        f"Total input tokens:                      {12 * TOKENS_PER_DOCUMENT:<10}",
        "Request throughput (req/s):              F",
        "Total token throughput (tok/s):          F",
        "----------------End-to-end Latency----------------",
        "Mean E2EL (ms):                          F",
        "Median E2EL (ms):                        F",
        "P99 E2EL (ms):                           F",
        "==================================================",
    ]
    assert len(fake.bodies) == 1 + 12, "a first try, then the run"
    for body in fake.bodies:
        assert body.keys() == {"model", "query", "documents", "truncate_prompt_tokens"}
        assert body["model"] == MODEL
        assert body["truncate_prompt_tokens"] == -1
        assert len(body["documents"]) == 1
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"vllm-rerank-infqps-model-\d{8}-\d{6}\.json", file.name)


VLLM_KEYS = [
    "date",
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "total_input_tokens",
    "total_input_sequences",
    "request_throughput",
    "input_sequence_throughput",
    "total_token_throughput",
    "latencies",
    "queue_times",
    "mean_e2el_ms",
    "median_e2el_ms",
    "std_e2el_ms",
    "p99_e2el_ms",
]
"""Keys of a file that `vllm bench serve --backend vllm-rerank --save-result` (0.32) wrote."""


def test_the_file_has_vllms_keys_and_true_figures(fake: Fake, tmp_path: Path) -> None:
    fake.delay = 0.05
    fake.fail = {5: (503, {"error": {"message": "queue is full"}})}
    common = ("--model", MODEL, "--base-url", fake.url, "--random-input-len", 32, "--num-prompts", 10)
    files = ("--save-result", "--result-dir", tmp_path, "--result-filename")
    assert bench(*common, *files, "plain.json", "--random-batch-size", 5).exit_code == 0
    assert bench(*common, *files, "all.json", "--save-detailed", "--metadata", "a=1", "b=x=2").exit_code == 0
    plain, detailed = (json.loads((tmp_path / name).read_text()) for name in ("plain.json", "all.json"))
    ours = {"failed", "failed_by_cause", "tokens_counted_by"}
    assert set(plain) == set(VLLM_KEYS) | ours
    assert set(detailed) == set(VLLM_KEYS) | ours | {"input_lens", "errors", "a", "b"}
    assert (detailed["a"], detailed["b"]) == ("1", "x=2")
    assert plain["num_prompts"] == 10
    assert plain["completed"] == 2
    assert plain["total_input_sequences"] == 10
    assert plain["request_rate"] == "inf"
    # The first run is requests 0 to 2; the second's first try is 3, so that 5 is one of its ten.
    assert (detailed["completed"], detailed["failed"]) == (9, 1)
    assert detailed["failed_by_cause"] == {"HTTP 503: queue is full": 1}
    assert sorted(detailed["errors"])[-2:] == ["", "HTTP 503: queue is full"]
    for figures in (plain, detailed):
        good = [latency for latency in figures["latencies"] if latency]
        assert len(good) == figures["completed"]
        assert min(good) >= 0.05
        assert figures["mean_e2el_ms"] == pytest.approx(1000 * numpy.mean(good))
        assert figures["p99_e2el_ms"] == pytest.approx(1000 * numpy.percentile(good, 99))
    assert plain["total_token_throughput"] == pytest.approx(plain["total_input_tokens"] / plain["duration"])


@pytest.mark.parametrize(
    ("backend", "endpoint", "fields", "counted"),
    [
        ("vllm-rerank", "/v1/rerank", {"model", "query", "documents", "truncate_prompt_tokens"}, "server"),
        ("sglang", "/sglang/v1/rerank", {"model", "query", "documents", "return_documents"}, "server"),
        ("tei", "/tei/rerank", {"query", "texts", "truncate"}, "server"),
        ("infinity", "/rerank", {"model", "query", "documents"}, "server"),
        ("cohere", "/cohere/v2/rerank", {"model", "query", "documents"}, "server"),
        ("infinity", "/silent/rerank", {"model", "query", "documents"}, "client"),
    ],
)
def test_every_backend(fake: Fake, tmp_path: Path, backend: str, endpoint: str, fields: set[str], counted: str) -> None:
    result = bench(
        *("--model", MODEL, "--backend", backend, "--base-url", fake.url, "--endpoint", endpoint),
        *("--random-input-len", 40, "--random-batch-size", 3, "--num-prompts", 7, "--save-result"),
        *("--result-dir", tmp_path),
    )
    assert result.exit_code == 0, result.output
    assert {frozenset(body) for body in fake.bodies} == {frozenset(fields)}
    assert sorted(len(body.get("documents", body.get("texts"))) for body in fake.bodies[1:]) == [1, 3, 3]
    assert set(fake.paths) == {endpoint}
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    assert saved["tokens_counted_by"] == counted
    # MiniLM's tokenizer adds 2 to a text: 40 // 2 - 1 - 2 for the query, 1 for the separator, the rest of 40 - 2.
    assert saved["total_input_tokens"] == (7 * TOKENS_PER_DOCUMENT if counted == "server" else 7 * 38)
    assert rows(result.stdout)["Input throughput (inputs/s)"]


def test_a_backends_own_endpoint_is_the_default(fake: Fake) -> None:
    for backend, path in (("tei", "/rerank"), ("cohere", "/v2/rerank"), ("sglang", "/v1/rerank")):
        bench("--model", MODEL, "--backend", backend, "--base-url", fake.url, "--num-prompts", 1)
        assert fake.paths[-1] == path


def test_failures_are_counted_by_cause(fake: Fake) -> None:
    fake.fail = {
        2: (503, {"error": {"message": "queue is full", "code": 503}}),
        4: (503, {"error": {"message": "queue is full", "code": 503}}),
        5: (422, {"detail": "documents: too many"}),
    }
    result = bench("--model", MODEL, "--base-url", fake.url, "--num-prompts", 9, "--random-input-len", 30)
    assert result.exit_code == 0
    assert rows(result.stdout)["Successful requests"] == "6"
    assert rows(result.stdout)["Failed requests"] == "3"
    tail = result.stdout.splitlines()
    cut = tail.index("-------------Failed Requests by Cause-------------")
    assert tail[cut + 1 :] == ["       2  HTTP 503: queue is full", "       1  HTTP 422: documents: too many", "=" * 50]
    assert rows(result.stdout)["Total input tokens"] == str(6 * TOKENS_PER_DOCUMENT), "of the successful alone"


def test_an_answer_that_lacks_scores_is_a_failure(fake: Fake) -> None:
    fake.drop = 1
    result = bench("--model", MODEL, "--base-url", fake.url, "--random-batch-size", 4, "--num-prompts", 8)
    assert result.exit_code == 1
    assert "the answer has 3 results, not 4" in result.stderr


def test_an_answer_in_another_backends_shape_is_a_failure(fake: Fake) -> None:
    result = bench("--model", MODEL, "--base-url", fake.url, "--endpoint", "/sglang/v1/rerank", "--num-prompts", 1)
    assert result.exit_code == 1
    assert "another shape than this --backend's" in result.stderr


def test_the_first_request_must_succeed(fake: Fake) -> None:
    fake.fail = {0: (404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}})}
    result = bench("--model", MODEL, "--base-url", fake.url, "--num-prompts", 1, "--ready-check-timeout-sec", 600)
    assert result.exit_code == 1
    assert "HTTP 404: The model `x` does not exist." in result.stderr
    assert len(fake.bodies) == 1, "an answer is an answer: nothing is waited for"


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        result = bench("--model", MODEL, "--port", held.getsockname()[1], "--num-prompts", 1)
    assert result.exit_code == 1
    assert "the first request failed" in result.stderr
    assert "Traceback" not in result.output


def test_waits_for_a_server_that_is_not_ready(fake: Fake) -> None:
    fake.fail = {0: (503, "loading")}
    result = bench("--model", MODEL, "--base-url", fake.url, "--num-prompts", 1, "--ready-check-timeout-sec", 30)
    assert result.exit_code == 0
    assert len(fake.bodies) == 3


def test_requests_in_flight_stay_under_the_limit(fake: Fake) -> None:
    fake.delay = 0.02
    flags = ("--model", MODEL, "--base-url", fake.url, "--num-prompts", 12, "--random-input-len", 30)
    limited = bench(*flags, "--max-concurrency", 3, "--percentile-metrics", "e2el,client_queue_time")
    assert fake.most_in_flight == 3
    assert rows(limited.stdout)["Maximum request concurrency"] == "3"
    assert float(rows(limited.stdout)["Mean Client Queue Time (ms)"]) > 10
    fake.delay = 2  # long enough for all to be there before the first is answered
    assert rows(bench(*flags).stdout)["Successful requests"] == "12"
    assert fake.most_in_flight == 12


def test_warmups_are_sent_and_not_counted(fake: Fake) -> None:
    result = bench("--model", MODEL, "--base-url", fake.url, "--num-prompts", 4, "--num_warmups", 5)
    assert len(fake.bodies) == 1 + 5 + 4
    assert rows(result.stdout)["Successful requests"] == "4"


def test_headers_as_argparse_and_as_repeats(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    common = ("--model", MODEL, "--base-url", fake.url, "--num-prompts", 1)
    bench(*common, "--header", "x-a=1", "x-b=2=3", "--seed", 1, "--header", "x-c=4")
    sent = fake.headers[-1]
    assert (sent["x-a"], sent["x-b"], sent["x-c"]) == ("1", "2=3", "4")
    assert sent["authorization"] == "Bearer secret"
    bench(*common, "--header", "Authorization=Bearer other")
    assert fake.headers[-1]["authorization"] == "Bearer other"


def test_model_is_asked_of_the_server(fake: Fake) -> None:
    result = bench("--base-url", fake.url, "--tokenizer", MODEL, "--num-prompts", 1)
    assert result.exit_code == 0, result.output
    assert fake.bodies[-1]["model"] == "fake/model"
    bench("--base-url", fake.url, "--model", MODEL, "--served-model-name", "alias", "--num-prompts", 1)
    assert fake.bodies[-1]["model"] == "alias"


def test_the_tokenizer_is_what_the_server_loaded(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The variable of that name is read when the hub's library is imported, which was long ago.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fake.models = [{"id": "other", "root": "/nowhere/at/all"}, {"id": "org/name", "root": MODEL}]
    common = ("--base-url", fake.url, "--num-prompts", 1, "--save-result", "--result-dir", tmp_path)
    for place, flags in enumerate((["--model", "org/name"], ["--model", "m", "--served-model-name", "org/name"])):
        result = bench(*common, *flags, "--result-filename", f"{place}.json")
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / f"{place}.json").read_text())["tokenizer_id"] == MODEL
        assert fake.bodies[-1]["model"] == "org/name"
    fake.models.reverse()
    assert bench(*common).exit_code == 0
    assert fake.bodies[-1]["model"] == "org/name"
    assert "no tokenizer.json for 'other'" in bench(*common, "--model", "other").stderr, "a path of another machine"
    assert "no tokenizer.json for 'absent'" in bench(*common, "--model", "absent").stderr
    fake.models.clear()
    assert "/v1/models lists none" in bench(*common).stderr


@pytest.mark.parametrize("command", [["serve"], ["capacity", "/no/such/model"], ["capacity", "--base-url", "http://x"]])
def test_without_the_extra_the_error_names_it(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert result.stderr == "rerankd: error: Benchmarks need extra packages: pip install 'rerankd[bench]'.\n"


def test_a_server_that_is_down_cannot_be_reached() -> None:
    assert "http://127.0.0.1:1 cannot be reached: " in bench("--base-url", "http://127.0.0.1:1").stderr


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--model", "/nowhere/at/all"], "no tokenizer.json for '/nowhere/at/all'"),
        (["--model", "m", "--dataset-name", "jsonl"], "--dataset-path: needed"),
        (["--model", MODEL, "--dataset-path", "x.jsonl"], "random-rerank reads no file"),
        (["--model", MODEL, "--random-input-len", "7"], "--random-input-len: 7 tokens leave none"),
        (["--model", MODEL, "--random-range-ratio", "1"], "not in [0, 1)"),
        (["--model", MODEL, "--request-rate", "0"], "--request-rate: 0.0 is not above 0"),
        (["--model", MODEL, "--max-concurrency", "0"], "--max-concurrency: 0 is below 1"),
        (["--model", MODEL, "--metric-percentiles", "50,101"], "--metric-percentiles"),
        (["--model", MODEL, "--percentile-metrics", "speed"], "'speed' is not one of e2el"),
        (["--model", MODEL, "--header", "nonsense"], "'nonsense' is not KEY=VALUE"),
    ],
)
def test_bad_flags_name_themselves(flags: list[str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = bench(*flags)
    assert result.exit_code == 1
    assert problem in result.stderr
    assert "Traceback" not in result.output


def test_requests_leave_at_the_rate(fake: Fake) -> None:
    result = bench(
        *("--model", MODEL, "--base-url", fake.url, "--num-prompts", 6, "--request-rate", 20),
        *("--burstiness", "inf", "--random-input-len", 30),
    )
    assert rows(result.stdout)["Request rate configured (RPS)"] == "20.00"
    # Each waits for its time from the start on: however late the first arrives, six take as long.
    assert float(rows(result.stdout)["Benchmark duration (s)"]) >= 6 / 20


def test_file_names_are_vllms() -> None:
    date = "20260102-030405"
    assert file_name("vllm-rerank", Traffic(), "Qwen/Qwen3-Reranker-8B", date) == (
        "vllm-rerank-infqps-Qwen3-Reranker-8B-20260102-030405.json"
    )
    assert file_name("tei", Traffic(rate=10.0, concurrency=8), "/models/m3/", date) == (
        "tei-10.0qps-concurrency8-m3-20260102-030405.json"
    )


def test_append_makes_lines(fake: Fake, tmp_path: Path) -> None:
    for _ in range(2):
        bench(
            *("--model", MODEL, "--base-url", fake.url, "--num-prompts", 1, "--append-result"),
            *("--result-dir", tmp_path / "new", "--result-filename", "runs.jsonl"),
        )
    runs = (tmp_path / "new" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(run)["completed"] for run in runs] == [1, 1]


def test_a_tokenizer_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RerankdError, match=r"--tokenizer: .*tokenizer\.json cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_proxy_of_the_environment_is_used(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", fake.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    result = bench("--model", MODEL, "--base-url", "http://no-such-host.invalid", "--num-prompts", 3)
    assert result.exit_code == 0, result.output
    assert {one["host"] for one in fake.headers} == {"no-such-host.invalid"}


def test_a_password_of_netrc_is_sent(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(path))
    result = bench("--model", MODEL, "--base-url", fake.url, "--num-prompts", 3)
    assert result.exit_code == 0, result.output
    assert {one["authorization"] for one in fake.headers} == {"Basic bWU6c2VjcmV0"}
