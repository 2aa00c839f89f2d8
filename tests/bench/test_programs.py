"""The command lines of `python -m benchmarks.NAME`, and of the checkpoints that they measure."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.launched import environment

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
WITHOUT_ARGUMENTS = {"agreement", "gemm", "peak", "trees_worker"}
"""Programs that need no argument."""


def ended(module: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of a program that ends at its arguments."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    return end.value.code


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(f"benchmarks.{name}", "--help", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: ")
    if name not in WITHOUT_ARGUMENTS:
        assert ended(f"benchmarks.{name}", monkeypatch=monkeypatch) == 2
        assert "the following arguments are required: " in capsys.readouterr().err


@pytest.mark.parametrize("module", ["tests.checkpoints", "benchmarks.checkpoints"])
def test_unknown_checkpoints_are_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended(module, "--help", monkeypatch=monkeypatch) == 0
    assert ended(module, "folder", "bert-minilm", "foo", monkeypatch=monkeypatch) == 2
    assert "there is no checkpoint foo; the names are qwen3-tiny, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_memory_ends_with_an_error_if_its_model_cannot_be_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "/no/such/model"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=FOLDER.parent,
        env=environment(),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "/no/such/model" in done.stderr
    assert "Traceback" not in done.stderr
