"""The script for a machine with a GPU runs from end to end on the CPU, in tiny shapes: its time there is precious."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_step_runs(tmp_path: Path) -> None:
    figures = tmp_path / "gpu.json"
    words = [sys.executable, "-m", "benchmarks.gpu.check", "--device", "cpu", "--small", "--models", "qwen3-small"]
    words += ["--output", str(figures)]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert not [figure for figure in found if "failed" in figure], done.stderr
    assert {figure.get("step") for figure in found} >= {
        "parity",
        "attention",
        "scores",
        "speed",
        "profile",
        "peers",
        "text",
        "vision",
    }
    seen = [figure for figure in found if figure.get("step") == "vision"]
    assert [(figure["kind"], figure["picture_tokens"]) for figure in seen] == [("text", 0), ("pictures", 8)]
    scores = [figure for figure in found if figure.get("step") == "scores" and figure["path"] != "plain"]
    assert scores
    assert all(figure["error"] < 1e-5 < figure["spread"] for figure in scores)


def test_the_shell_script_names_steps_and_models_that_exist() -> None:
    from benchmarks.gpu.check import STEPS
    from benchmarks.gpu.shapes import FULL, SEEING_FULL

    parts = re.findall(r"part \w+ (\S+) (\S+) ;;", (ROOT / "benchmarks/gpu/run.sh").read_text())
    assert {step for _, steps in parts for step in steps.split(",")} == STEPS.keys()
    named = {name for models, _ in parts for name in models.strip('"').split(",") if name}
    assert named == {shape.name for shape in (*FULL, *SEEING_FULL)}
