"""The errors of command lines, and their help, in our words."""

from __future__ import annotations

import re
import sys

import pytest
import typer

from rerankd.cli import bench, main
from rerankd.cli.plain import PlainCommand


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, code: int = 2) -> str:
    """What `rerankd LINE` prints, on either stream."""
    monkeypatch.setattr(sys, "argv", ["rerankd", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == code
    captured = capsys.readouterr()
    return captured.err + captured.out


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("serve m --port abc", "--port: must be a whole number, not 'abc'."),
        ("serve m --port 70000", "--port: must be at most 65535, not '70000'."),
        ("serve m --max-body-mb x", "--max-body-mb: must be a number, not 'x'."),
        ("serve m --log-format xml", "--log-format: 'xml' is not one of 'text', 'json'."),
        ("serve m --max-model-len x", "--max-model-len: 'x' is not a number of tokens, such as 4096 or 8k."),
        ('serve m --mm-processor-kwargs {"fps":"x"}', "--mm-processor-kwargs: fps: must be a number."),
        ("serve m --allowed-local-media-path /nope", "--allowed-local-media-path: '/nope' does not exist."),
        ("inspect", "MODEL: is required; see --help."),
        ("inspect m --port 9", "There is no flag --port; see --help for those that there are."),
        ("inspect m --quantisation int8", "There is no flag --quantisation; did you mean --quantization?"),
        ("--dtype", "There is no flag --dtype; see --help for those that there are."),
        ("rank m --top-k 0", "--top-k: must be at least 1, not '0'."),
        ("serv", "There is no command serv; did you mean serve?"),
        ("launch_server --help", "There is no command launch_server; run python -m rerankd.launch_server."),
        ("bench x", "There is no command x; the commands are capacity, serve, offline, quantization."),
        ("bench serve --port x", "--port: must be a whole number, not 'x'."),
        ("bench offline", "MODEL: is required; see --help."),
    ],
)
def test_an_error_is_one_line_in_our_words(
    line: str, problem: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(capsys, monkeypatch, line) == f"rerankd: error: {problem}\n"


def test_a_variable_is_told_as_a_flag_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANKD_PORT", "x")
    assert told(capsys, monkeypatch, "serve") == "rerankd: error: RERANKD_PORT: must be a whole number, not 'x'.\n"


COMMANDS = ["serve", "inspect", "models", "rank", "eval", "run-batch"]
BENCH = ["capacity", "serve", "offline", "quantization"]
USAGES = {
    "serve": "[OPTIONS] [MODEL] [MODEL]...",
    "inspect": "[OPTIONS] MODEL",
    "models": "[OPTIONS]",
    "bench capacity": "[OPTIONS] [MODEL] [-- FLAG...]",
    "bench offline": "[OPTIONS] MODEL",
}


@pytest.mark.parametrize("command", ["", *COMMANDS, "bench", *(f"bench {name}" for name in BENCH)])
def test_help_has_plain_words(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    help = told(capsys, monkeypatch, f"{command} -h", code=0)
    assert help == told(capsys, monkeypatch, f"{command} --help", code=0)
    assert not re.search(r"<\w|list\[|[{}]MODEL|\]\]", help.replace("{query, documents}", "")), help
    if usage := USAGES.get(command):
        assert re.search(rf"^Usage: .*{re.escape(command)} {re.escape(usage)}$", help, re.MULTILINE), help


def test_help_says_which_model_is_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("serve", "rank", "run-batch"):
        words = re.sub(r"\s+", "", told(capsys, monkeypatch, f"{command} --help", code=0))
        assert "isinstalled,elseBAAI/bge-reranker-v2-m3fromthehub]" in words


def test_every_command_is_such_a_command() -> None:
    for app in (main._rerankd(), bench.app, main._launch_server()):
        command = typer.main.get_command(app)
        commands = getattr(command, "commands", {"": command})
        assert all(isinstance(one, PlainCommand) for name, one in commands.items() if name != "bench")


def test_the_default_of_queued_tokens_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"\nmax-queued-tokens: {8 << 20}  # default\n" in told(capsys, monkeypatch, "serve --print-config", code=0)
