"""Variables of the programs that rerankd replaces: which stand for a flag, and what is said of the others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from rerankd.cli.main import _rerankd
from rerankd.cli.replica import launch_of
from rerankd.cli.start import Launch
from rerankd.compat.variables import SGLANG_VARIABLES, VLLM_VARIABLES, Variables, modelscope
from tests.cli.test_options import Started, run, started  # noqa: F401 - a fixture
from tests.server.launched import SERVE, environment, launched


def launch(monkeypatch: pytest.MonkeyPatch, started: Started, command: str, *words: str) -> Launch:  # noqa: F811
    """What a command starts."""
    assert run(monkeypatch, command, *words) == 0
    assert started.launch is not None
    return started.launch


BOTH = [VLLM_VARIABLES, SGLANG_VARIABLES]
YES, NO = ("True", "true", "1", "TRUE "), ("False", "0", "", "no")


@pytest.mark.parametrize("value", YES)
def test_modelscope_is_where_models_are_looked_up(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
    value: str,
) -> None:
    for command, variable, words in (
        ("serve", "VLLM_USE_MODELSCOPE", ["a/b"]),
        ("launch_server", "SGLANG_USE_MODELSCOPE", ["--model-path", "a/b"]),
    ):
        monkeypatch.setenv(variable, value)
        assert launch(monkeypatch, started, command, *words).loading["hub"] == "modelscope"
        assert launch(monkeypatch, started, command, *words, "--hub", "huggingface").loading["hub"] == "huggingface"
        monkeypatch.delenv(variable)
    assert modelscope({"VLLM_USE_MODELSCOPE": value})


@pytest.mark.parametrize("value", NO)
def test_and_a_no_asks_for_nothing(monkeypatch: pytest.MonkeyPatch, started: Started, value: str) -> None:  # noqa: F811
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", value)
    assert launch(monkeypatch, started, "serve", "a/b").loading["hub"] == "huggingface"
    assert not modelscope({"VLLM_USE_MODELSCOPE": value})
    assert not modelscope({"SGLANG_USE_MODELSCOPE": "true"})


def test_a_key_and_a_level_stand_for_their_flags_unless_these_are_given(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "from-vllm")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARN")
    made = launch(monkeypatch, started, "serve", "a/b")
    assert (made.door.api_keys, made.log_level) == (("from-vllm",), "warning")
    for spelt in ("--uvicorn-log-level", "--log_level"):
        made = launch(monkeypatch, started, "serve", "a/b", spelt, "debug", "--api_key=mine")
        assert (made.door.api_keys, made.log_level) == (("mine",), "debug")
    made = launch(monkeypatch, started, "launch_server", "--model-path", "a/b")
    assert (made.door.api_keys, made.log_level) == ((), "info")


def test_vllms_development_mode_is_its_routes_to_sleep(
    monkeypatch: pytest.MonkeyPatch,
    started: Started,  # noqa: F811
) -> None:
    for value, ours, sleeps in (("1", None, True), ("0", None, False), ("yes", None, False), ("1", "false", False)):
        monkeypatch.setenv("VLLM_SERVER_DEV_MODE", value)
        if ours:
            monkeypatch.setenv("RERANKD_SLEEP_ROUTES", ours)
        assert launch(monkeypatch, started, "serve", "a/b", "--enable-sleep-mode").residence.sleep_routes is sleeps
        said = [note for note in started.notes if "VLLM_SERVER_DEV_MODE is" in note]
        assert bool(said) == (value == "yes"), "what is not read is said"


def test_what_has_no_effect_is_said_a_line_each_and_what_nobody_knows_in_one() -> None:
    environ = {
        "VLLM_PORT": "8000",
        "VLLM_CPU_KVCACHE_SPACE": "40",
        "VLLM_LOGGING_PREFIX": "",
        "VLLM_USE_MODELSCOPE": "True",
        "VLLM_LOGGING_LEVEL": "LOUD",
        "VLLM_NEW_AND_STRANGE": "1",
        "SGLANG_USE_MODELSCOPE": "1",
        "SGL_OLD": "1",
        "HF_HOME": "/models",
    }
    assert list(VLLM_VARIABLES.notes(environ, ("--hub", "--log-level"))) == [
        "VLLM_CPU_KVCACHE_SPACE is vLLM's and has no effect here: there is no KV cache: keys and values live for one "
        "layer.",
        "VLLM_LOGGING_LEVEL is not read: 'LOUD' is none of critical, error, warning, info, debug.",
        "VLLM_PORT is vLLM's and has no effect here: it does not set the address to listen on; give --host and --port.",
        "Not read: SGLANG_USE_MODELSCOPE, SGL_OLD, VLLM_NEW_AND_STRANGE.",
    ]
    assert VLLM_VARIABLES.flag_values(environ) == {"VLLM_USE_MODELSCOPE": ("--hub", "modelscope")}
    assert list(SGLANG_VARIABLES.notes({"HF_HOME": "/models", "SGLANG_USE_MODELSCOPE": "1"}, ("--hub",))) == []


def test_a_variable_whose_flag_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a replica that Ray runs, and of a file of requests that no server answers."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_API_KEY", "a-secret")
    said = "VLLM_SERVER_DEV_MODE has no effect here: it stands for --sleep-routes, which cannot be set here."
    launch, notes = launch_of({"model": "a/b"})
    assert (notes, launch.door.api_keys) == ([said], ("a-secret",))
    printed = CliRunner().invoke(_rerankd(), ["run-batch", "-i", "a", "-o", "b", "--print-config"])
    assert printed.exit_code == 0, printed.output
    assert [line for line in printed.stderr.splitlines() if "VLLM" in line] == [
        "VLLM_API_KEY has no effect here: it stands for --api-key, which cannot be set here.",
        said,
    ]
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "0")
    assert launch_of({"model": "a/b"})[1] == [], "nothing is asked for"


@pytest.mark.parametrize("variables", BOTH, ids=lambda one: one.program)
def test_each_variable_has_one_verdict(variables: Variables) -> None:
    names = [name for names in variables.ignored.values() for name in names] + list(variables.honoured)
    assert sorted(names) == sorted(set(names))
    assert all(re.fullmatch(r"[A-Z0-9_]+", name) for name in names)
    assert not any(reason.endswith(".") for reason in variables.ignored)


def test_a_server_says_what_it_does_not_read_and_wants_the_key(
    monkeypatch: pytest.MonkeyPatch, minilm_path: Path
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-secret")
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    with launched(SERVE, str(minilm_path)) as server:
        assert "VLLM_HOST_IP is vLLM's and has no effect here" in server.said
        assert "a-secret" not in server.said
        body = {"query": "a", "documents": ["b"]}
        assert requests.post(f"{server.url}/v1/rerank", json=body, timeout=30).status_code == 401
        headers = {"Authorization": "Bearer a-secret"}
        assert requests.post(f"{server.url}/v1/rerank", json=body, headers=headers, timeout=30).status_code == 200


def test_an_empty_key_leaves_no_door_open(monkeypatch: pytest.MonkeyPatch, minilm_path: Path) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    done = subprocess.run(
        [sys.executable, *SERVE, str(minilm_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    assert "An API key is empty" in done.stderr
