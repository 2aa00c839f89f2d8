"""Options from variables, from a file and from the command line: which wins, what is refused, what is printed."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rerankd.backends.cpu.native.units import CAP
from rerankd.cli import main
from rerankd.cli.configuration import READ_ELSEWHERE
from rerankd.cli.serve import serve
from tests.cli.test_options import SERVE_WORDS, SERVED, Started, run, started  # noqa: F401 - a fixture

PROGRAMS = ("serve", "launch_server")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a file, and says its name; the folder is the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("server.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "server.yaml"

    return write


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, *words: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert run(monkeypatch, program, *words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("rerankd: error: ")
    assert told.err.count("\n") == 1
    return told.err[len("rerankd: error: ") : -1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_command_line_wins_over_the_environment_over_the_file(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
    program: str,
) -> None:
    words = ["--config", config("model: org/m\nport: 1\nhost: file\ndevice: file\nhub: modelscope\n")]
    monkeypatch.setenv("RERANKD_PORT", "2")
    monkeypatch.setenv("RERANKD_HOST", "variable")
    monkeypatch.setenv("RERANKD_DTYPE", "")
    assert run(monkeypatch, program, *words, "--port", "3") == 0
    made = started.launch
    assert made is not None
    assert (made.model, made.port, made.host) == ("org/m", 3, "variable")
    assert (made.loading["device"], made.loading["hub"], made.loading["dtype"]) == ("file", "modelscope", "auto")
    monkeypatch.setenv("RERANKD_CONFIG", "server.yaml")
    assert run(monkeypatch, program, "--model", "other/m") == 0
    assert started.launch is not None
    assert (started.launch.model, started.launch.port) == ("other/m", 2)


def test_ours_win_over_vllms_variables_and_these_over_the_file(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    words = ["--config", config("log-level: error\ntimeout-keep-alive: 5\napi-key: of-the-file\nmodel: a\n")]
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARN")
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "6")
    monkeypatch.setenv("VLLM_API_KEY", "of-vllm")
    monkeypatch.setenv("RERANKD_TIMEOUT_KEEP_ALIVE", "7")
    monkeypatch.setenv("RERANKD_API_KEY", "another")
    assert run(monkeypatch, "serve", "positional/m", *words) == 0
    made = started.launch
    assert made is not None
    assert (made.model, made.log_level, made.keep_alive) == ("positional/m", "warning", 7.0)
    assert made.door.keys() == ("of-vllm", "another")


def test_values_are_taken_as_they_are_written(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    text = """
        revision: 0123e5
        served_model_name: [off, 7, a b]
        api-key: one
        max-model-len: 4k
        max-num-batched-tokens: -1
        hf-overrides: {a: 1, b: {c: [true, null]}}
        allowed-origins: ["https://a.example"]
        disable-playground: true
        disable-fastapi-docs: false
        label:
    """
    assert run(monkeypatch, "serve", "org/m", "--config", config(text)) == 0
    made = started.launch
    assert made is not None
    assert made.loading["revision"] == "0123e5"
    assert made.settings["names"] == ("off", "7", "a b")
    assert made.door.api_keys == ("one",)
    assert (made.loading["max_model_len"], made.loading["max_batch_tokens"]) == (4000, None)
    assert made.loading["hf_overrides"] == {"a": 1, "b": {"c": [True, None]}}
    assert made.door.allowed_origins == ("https://a.example",)
    assert (made.settings["playground"], made.settings["docs"]) == (False, True)
    assert made.loading["label"] is None
    monkeypatch.setenv("RERANKD_DISABLE_PLAYGROUND", "False")
    monkeypatch.setenv("RERANKD_SERVED_MODEL_NAME", "x 'y z'")
    monkeypatch.setenv("RERANKD_HF_OVERRIDES", '{"a": 2}')
    assert run(monkeypatch, "serve", "org/m", "--config", config(text)) == 0
    made = started.launch
    assert made is not None
    assert (made.settings["playground"], made.settings["names"]) == (True, ("x", "y z"))
    assert made.loading["hf_overrides"] == {"a": 2}


FILES = [
    ("prot: 1", "server.yaml: prot: There is no flag --prot; did you mean --port"),
    ("--port: 1", "server.yaml: --port: a key has to be a flag's name without its dashes"),
    ("port=1: 1", "server.yaml: port=1: a key has to be"),
    ("port: many", "server.yaml: port: "),
    ("port: true", "server.yaml: port: "),
    ("port: 70000", "server.yaml: port: "),
    ("media-memory-mb: inf", "server.yaml: media-memory-mb: the value has to be a number, at most 1,000,000,000."),
    ("media-memory-mb: .inf", "server.yaml: media-memory-mb: "),
    ("port: [1, 2]", "server.yaml: port: the option takes one value, not a list"),
    ("revision: {a: 1}", "server.yaml: revision: the option takes one value"),
    ("hub: huggingfaces", "server.yaml: hub: "),
    ("max-model-len: 1.5", "server.yaml: max-model-len: "),
    ("hf-overrides: [1]", "server.yaml: hf-overrides: "),
    ("hf-overrides: {a: 2020-01-01}", "server.yaml: hf-overrides: the value has a type that JSON lacks"),
    ("allowed-local-media-path: [/nowhere]", "server.yaml: allowed-local-media-path: "),
    ("protect-all: 7", "server.yaml: protect-all: '7' is neither true nor false"),
    ("tp: 1\ntensor-parallel-size: 2", "server.yaml: tensor-parallel-size: the option has another name too"),
    ("port: 1\nport: 2", "server.yaml, line 2: the file is not YAML that can be read: the key port occurs twice"),
    ("hf-overrides: {a: 1, a: 2}", "server.yaml, line 1: the file is not YAML that can be read: the key a occurs"),
    ("hf-overrides: &x {a: *x}", "server.yaml, line 1: the file is not YAML that can be read: a value contains itself"),
    ("port: !!python/name:os.system", "server.yaml: port: "),
    ("hf-overrides: {a: !!python/name:os.system 1}", "server.yaml, line 1: the file is not YAML that can be read: "),
    ("port: [1", "server.yaml, line 1: the file is not YAML that can be read: "),
    ("- port", "server.yaml: the file must have keys and values"),
    ("config: other.yaml", "server.yaml: config: --config is for the command line alone"),
    (b"host: \xff", "--config server.yaml cannot be read: "),
]


@pytest.mark.parametrize(("text", "line"), FILES, ids=[str(text) for text, _ in FILES])
def test_a_file_is_refused_with_its_name_and_the_key(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
    text: str | bytes,
    line: str,
) -> None:
    assert refused(monkeypatch, capsys, "serve", "org/m", "--config", config(text)).startswith(line)
    assert started.launch is None


def test_so_are_a_file_that_is_not_there_and_variables(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
) -> None:
    config("")
    told = refused(monkeypatch, capsys, "launch_server", "--config=nowhere.yaml")
    assert told == "--config nowhere.yaml cannot be read: No such file or directory."
    assert refused(monkeypatch, capsys, "serve", "--config", ".").startswith("--config . cannot be read: ")
    for variable, value, line in (
        ("RERANKD_PORT", "many", "RERANKD_PORT: "),
        ("RERANKD_MAX_BODY_MB", "1e400", "RERANKD_MAX_BODY_MB: the value has to be a number, at most 1,000,000,000."),
        ("RERANKD_PROTECT_ALL", "maybe", "RERANKD_PROTECT_ALL: 'maybe' is neither true nor false."),
        ("RERANKD_SERVED_MODEL_NAME", "'a", "RERANKD_SERVED_MODEL_NAME: the value cannot be split into words"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert refused(patch, capsys, "serve", "org/m").startswith(line)
    assert started.launch is None


ANNOTATIONS = [one.annotation for one in inspect.signature(serve).parameters.values() if one.name != "ctx"]
NUMBERS = [
    option.default  # where Typer has the first flag
    for kind, option, *_ in map(get_args, ANNOTATIONS)
    if {int, float} & {kind, *get_args(kind)}
]
"""The flags of `serve` that take a number."""


def test_numbers_that_fit_nowhere_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
) -> None:
    assert {"--max-body-mb", "--max-model-memory-gb", "--port", "--max-model-len", "--num-threads"} <= set(NUMBERS)
    for flag in NUMBERS:
        for number in ("inf", "-inf", "nan", "1e400", "infk", "9" * 30, "9" * 400, "٣x"):
            told = refused(monkeypatch, capsys, "serve", f"{flag}={number}")
            assert told.startswith((f"{flag}: ", f"rerankd: error: {flag}: ")), number
            assert "\n" not in told.strip()
    assert started.launch is None
    assert run(monkeypatch, "serve", "--max-model-memory-gb", str(10**9), "--max-queued-tokens", str(10**15)) == 0
    assert started.launch is not None
    assert (started.launch.residence.memory, started.launch.settings["max_queued_tokens"]) == (10**9 << 30, 10**15)


def test_flags_of_vllm_in_a_file_are_judged_as_on_the_command_line(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
) -> None:
    text = "max-num-seqs: 256\nenable-prefix-caching: true\nenable-lora: false\n"
    assert run(monkeypatch, "serve", "org/m", "--config", config(text)) == 0
    said = [note.split(" is vLLM's")[0] for note in started.notes]
    assert said == ["server.yaml: max-num-seqs", "server.yaml: enable-prefix-caching"]
    told = refused(monkeypatch, capsys, "serve", "org/m", "--config", config("enable-lora: true"))
    assert told.startswith("server.yaml: enable-lora is not supported: ")


def test_variables_that_are_not_read_are_named(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    monkeypatch.setenv("RERANKD_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("RERANKD_PROT", "1")
    monkeypatch.setenv("RERANKD_ISA", "avx2")
    monkeypatch.setenv("RERANKD_API_KEY", "a-secret")
    assert run(monkeypatch, "serve", "org/m") == 0
    assert started.launch is not None
    assert started.launch.port == 8000
    assert started.notes == ["Not read: RERANKD_PORT, RERANKD_PROT."]
    assert CAP in READ_ELSEWHERE


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(monkeypatch, *words, "--print-config") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("program", PROGRAMS)
def test_print_config_says_what_is_in_force_and_why_but_no_secret(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
    program: str,
) -> None:
    name = config(
        'port: 1\napi-key: hush-file\nssl-keyfile-password: hush-word\nhf-overrides: {a: "#"}\n'
        if program == "serve"
        else 'port: 1\napi-key: hush-file\nssl-keyfile-password: hush-word\njson-model-override-args: {a: "#"}\n'
    )
    monkeypatch.setenv("RERANKD_API_KEY", "hush-variable")
    monkeypatch.setenv("RERANKD_DEVICE", "cpu")
    monkeypatch.setenv("RERANKD_DISABLE_PLAYGROUND", "1")
    told = printed(monkeypatch, capsys, program, "--config", name, "--model", "org/m", "--served-model-name", "x", "y")
    lines = told.splitlines()
    assert {
        "port: 1  # server.yaml",
        'device: "cpu"  # RERANKD_DEVICE',
        "disable-playground: true  # RERANKD_DISABLE_PLAYGROUND",
        'served-model-name: ["x", "y"]  # command line',
        'host: "127.0.0.1"  # default',
        "# api-key: not shown  (server.yaml and RERANKD_API_KEY)",
        "# ssl-keyfile-password: not shown  (server.yaml)",
    } <= set(lines)
    assert sum(line.startswith(("model:", "model-path:")) for line in lines) == 1
    assert "hush" not in told
    assert started.launch is None
    # Printed once more from the file that it is, the values are the same.
    for variable in ("RERANKD_DEVICE", "RERANKD_DISABLE_PLAYGROUND"):
        monkeypatch.delenv(variable)
    again = printed(monkeypatch, capsys, program, "--config", config(told))
    assert yaml.safe_load(again) == yaml.safe_load(told)
    assert 'device: "cpu"  # server.yaml' in again.splitlines()


def test_every_flag_is_a_key_and_a_variable(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    started: Started,  # noqa: F811
) -> None:
    told = printed(monkeypatch, capsys, "serve", *SERVE_WORDS)
    keys = {line.lstrip("# ").partition(":")[0] for line in told.splitlines()}
    flags = main.own_flags("serve")
    for flag in {flag for flag in flags if len(flag) > 2} - {"help", "config", "print-config", *keys}:
        # Another name of an option: under its first name it is in the file.
        with monkeypatch.context() as patch:
            patch.setenv(f"RERANKD_{flag.replace('-', '_').upper()}", "-1")
            run(patch, "serve", "--print-config")
        assert "Not read" not in capsys.readouterr().err, flag
    assert run(monkeypatch, "serve", "--config", config(told)) == 0
    assert started.launch == SERVED
    for key, value in yaml.safe_load(told).items():
        monkeypatch.setenv(f"RERANKD_{key.replace('-', '_').upper()}", of_variable(value))
    assert run(monkeypatch, "serve") == 0
    assert started.launch == SERVED
    assert started.notes == []


def of_variable(value: Any) -> str:
    """A value of YAML as a variable has it; an empty variable says nothing."""
    if isinstance(value, list):
        return shlex.join(str(one) for one in value)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def test_print_config_takes_the_model_as_serve_does(
    config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = config("model: of/file\n")
    assert 'model: "of/file"  # server.yaml\n' in printed(monkeypatch, capsys, "serve", "--config", name)
    told = printed(monkeypatch, capsys, "serve", "of/line", "--config", name)
    assert 'model: "of/line"  # command line\n' in told
    assert "model: null  # default\n" in printed(monkeypatch, capsys, "serve")


def test_the_model_is_not_loaded_to_print(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        sys, "argv", ["rerankd", "run-batch", "-i", "a", "-o", "b", "--print-config", "--max-num-seqs=1"]
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
    told = capsys.readouterr()
    assert 'input-file: "a"  # command line\n' in told.out
    assert told.err.startswith("--max-num-seqs is vLLM's and has no effect here")
