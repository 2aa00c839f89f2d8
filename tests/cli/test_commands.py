"""The commands as a user runs them."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch

from rerankd import Reranker, __version__
from rerankd.backends.cpu.backend import CpuBackend
from tests.server.launched import LAUNCH_SERVER, SERVE, environment, launched, start


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, check=False, env=environment()
    )


@pytest.mark.parametrize(
    "words",
    [
        "rerankd --help",
        "rerankd --version",
        "rerankd serve --help",
        "rerankd rank --help",
        "rerankd eval --help",
        "rerankd.launch_server --help",
    ],
)
def test_help_needs_no_engine(words: str) -> None:
    module, *arguments = words.split()
    script = (
        "import runpy, sys\n"
        f"sys.argv = {['x', *arguments]!r}\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'uvicorn', 'rich', 'PIL', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout or __version__ in done.stdout


def test_the_server_needs_no_engine_to_be_imported() -> None:
    done = run("-c", "import sys, rerankd.server.app, rerankd.server.run; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


COMMANDS = ["serve", "inspect", "models", "rank", "eval", "run-batch", "bench"]


def test_no_command_shows_the_commands() -> None:
    done = run("-m", "rerankd")
    _, _, shown = (done.stdout + done.stderr).partition("Commands:")
    assert re.findall(r"^  ([\w-]+) ", shown, re.MULTILINE) == COMMANDS


def test_bench_reads_its_own_flags() -> None:
    assert "serve" in run("-m", "rerankd", "bench", "--help").stdout


TEXTS = ["hi", "The giant panda is a bear."]


def test_serve_until_ctrl_c(bert_checkpoint: Path) -> None:
    folder = str(bert_checkpoint)
    with launched(SERVE, folder, "--served-model-name", "my-model", "--dtype", "float32") as server:
        port = server.port
        ready, curl = server.said.splitlines()[-1], server.process.stdout.readline() if server.process.stdout else ""
        assert ready == (
            f"rerankd {__version__} is ready: http://127.0.0.1:{port} model=my-model family=cross-encoder "
            f"device=cpu dtype=float32 backend={CpuBackend(torch.float32).title}"
        )
        command = shlex.split(curl.removeprefix("Try: "))
        assert command[0] == "curl"
        lines = [server.process.stdout.readline() for _ in range(4)] if server.process.stdout else []
        url = f"http://127.0.0.1:{port}"
        assert lines[0] == f"In a browser: {url}/playground\n"
        assert lines[1].startswith("Cohere's SDK, LangChain, LlamaIndex: base URL " + url + "/cohere, ")
        assert lines[2] == f"LiteLLM: model hosted_vllm/my-model, api_base {url}\n"
        for address in re.findall(r"http://\S+?(?=[;\s])", lines[3]):
            path = "" if address.endswith("/rerank") else "/rerank"
            wanted = {"texts": TEXTS} if "/tei" in address else {"documents": TEXTS}
            assert requests.post(address + path, json={"query": "a", **wanted}, timeout=60).status_code == 200
        answer = json.loads(subprocess.run([*command, "-sS"], check=True, capture_output=True, timeout=60).stdout)
        body = json.loads(command[-1])
        with Reranker(folder, dtype="float32") as reranker:
            expected = reranker.rerank(body["query"], body["documents"])
        assert answer["model"] == "my-model"
        assert [one["index"] for one in answer["results"]] == [one.index for one in expected.documents]
        scores = [one["relevance_score"] for one in answer["results"]]
        assert scores == pytest.approx([one.score for one in expected.documents], abs=1e-5)
        code, said = server.stop(signal.SIGINT)
        assert code == 0
        assert '"POST /v1/rerank HTTP/1.1" 200' in said
        assert "Traceback" not in said


def test_hints_of_sglangs_server_are_for_answers_in_the_form_that_clients_read(bert_checkpoint: Path) -> None:
    with launched(LAUNCH_SERVER, "--model-path", str(bert_checkpoint), "--served-model-name", "m") as server:
        assert server.process.stdout
        lines = [server.process.stdout.readline() for _ in range(5)]
        url = f"http://127.0.0.1:{server.port}"
        assert lines[3] == f"LiteLLM: model hosted_vllm/m, api_base {url}/vllm\n"
        address, dify = re.findall(r"http://\S+?/v1(?:/rerank)?(?=;)", lines[4])[:2]
        for place in (address, f"{dify}/rerank"):
            body = {"model": "m", "query": "a", "documents": TEXTS, "top_n": 2}
            answer = requests.post(place, json=body, timeout=60).json()
            assert [set(one) >= {"index", "relevance_score"} for one in answer["results"]] == [True, True]


def test_sigterm_ends_it_too(bert_checkpoint: Path) -> None:
    with launched(LAUNCH_SERVER, "--model-path", str(bert_checkpoint)) as server:
        code, said = server.stop(signal.SIGTERM)
        assert code == 0
        assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_the_model_loads(bert_checkpoint: Path, number: signal.Signals) -> None:
    process = start([*SERVE, str(bert_checkpoint), "--port", "0", "--enforce-eager"])
    assert process.stdout is not None
    assert "--enforce-eager" in process.stdout.readline()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest == ""


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What an error says, which is one line on stderr beside the log."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("INFO:", "WARNING:"))]
    assert line.startswith("rerankd: error: ")
    assert line.endswith((".", "?"))
    return line


def test_a_port_in_use_is_one_line(bert_checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = one_line(run(*SERVE, str(bert_checkpoint), "--port", str(port)))
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


def test_what_is_wrong_with_a_model_is_one_line(bert_checkpoint: Path, tmp_path: Path) -> None:
    assert "/no/such/folder" in one_line(run(*SERVE, "/no/such/folder", "--port", "0"))
    assert "config.json" in one_line(run(*SERVE, str(tmp_path), "--port", "0"))
    line = one_line(
        run(*LAUNCH_SERVER, "--model-path", str(bert_checkpoint), "--port", "0", "--chat-template", "x.jinja")
    )
    assert "chat template" in line


def test_no_model_is_the_embedded_one(minilm_path: Path) -> None:
    with launched(SERVE) as server:
        why, ready = (line for line in server.said.splitlines() if not line.startswith("INFO:"))
        assert why.startswith("No model was named: serving all-MiniLM-L6-v2")
        assert "model=sentence-transformers/all-MiniLM-L6-v2 family=bi-encoder" in ready


def test_a_typo_is_one_line() -> None:
    done = run(*SERVE, "--max-modle-len", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rerankd: error: There is no flag --max-modle-len; did you mean --max-model-len?\n"


def test_a_half_that_a_cpu_is_slow_at_is_what_auto_takes(bert_checkpoint: Path) -> None:
    with launched(SERVE, str(bert_checkpoint), "--dtype", "half", "--device", "cpu") as server:
        (said,) = [line for line in server.said.splitlines() if " float16 is slow" in line]
        assert said.startswith("WARNING:")
        taken = re.search(r"computes in (\w+)", said)
        assert taken
        assert f"device=cpu dtype={taken[1]}" in server.said
