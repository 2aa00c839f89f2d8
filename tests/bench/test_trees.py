"""The comparison of source trees prints its figures; what they are depends on the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREE = r"""{name}: median \d+\.\d{{3}} ms, 10th percentile \d+\.\d{{3}} ms, CPU time \d+\.\d{{3}} ms
  stages: model \d+ us, queue \d+ us, rest -?\d+ us, tokenise \d+ us
  {ratio} times as fast as old by medians, {ratio} by 10th percentiles, {ratio} by CPU time
"""


def test_one_turn_of_the_same_tree_twice(bert_checkpoint: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.trees", str(bert_checkpoint), f"old={ROOT}"]
    words += [f"new={ROOT};OMP_NUM_THREADS=1;UNUSED=a=b", "--turns", "1", "--requests", "2", "--documents", "2"]
    words += ["--words", "mixed", "--dtype", "float32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    head = "2 documents of mixed words, 1 turns of 2 requests\n"
    itself = re.escape("1.000")
    trees = TREE.format(name="old", ratio=itself) + TREE.format(name="new", ratio=r"\d+\.\d{3}")
    assert re.fullmatch(head + trees, done.stdout), done.stdout
