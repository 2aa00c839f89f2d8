"""Source trees of rerankd on the same requests, turn by turn.

usage: python -m benchmarks.trees MODEL NAME=PATH[;VARIABLE=VALUE]... NAME=PATH... [--documents 10] [--words 30|mixed]
       [--turns 50] [--requests 50] [--dtype DTYPE] [--quantization int8]

Each PATH is a source tree with compiled kernels (`git worktree add PATH`, `python setup.py build_ext --inplace`), and
has a process of its own that stays alive, with the variables behind its path. The same path may come twice, also
without variables: then it shows how far equal trees seem to differ.

The speed of a machine varies within seconds, by more than most changes gain. So in each turn every tree answers the
same new requests, one tree right after another, in an order that turns round; and trees are compared within a turn.
The ratios are medians over the turns, and say more than the times beside them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import program
from rerankd.bench.workloads import QUERY_WORDS, Corpus

ROOT = Path(__file__).resolve().parents[1]
MIXED = 5, 300
"""Words of a document, from and to."""
PAUSE = 0.05
"""Seconds before a turn of a tree, in which the threads of the tree before it go to sleep."""


class Turn(NamedTuple):
    """A tree's part of a turn, in seconds.

    figures: of a request, the median, the 10th percentile, and the mean of the CPU's time
    stages: medians
    """

    figures: tuple[float, float, float]
    stages: dict[str, float]


class Tree:
    """A process of one source tree, and its turns."""

    def __init__(self, spec: str, model: str, options: dict[str, str]) -> None:
        """spec: NAME=PATH;VARIABLE=VALUE;..."""
        self.name, _, place = spec.partition("=")
        path, *variables = place.split(";")
        if not path or not all("=" in one for one in variables):
            sys.exit(f"{spec!r} is not NAME=PATH or NAME=PATH;VARIABLE=VALUE")
        self.turns: list[Turn] = []
        self._source = Path(path).resolve() / "src"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.trees_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(self._source), **dict(one.split("=", 1) for one in variables)},
        )
        self._send([model, options])

    def expect_ready(self) -> None:
        """Wait until the model is loaded."""
        if self._source not in Path(imported := self._answer()).parents:
            sys.exit(f"{self.name}: {self._source} has no rerankd; {imported} was imported")

    def answer(self, requests: Sequence[object]) -> None:
        """One more turn."""
        time.sleep(PAUSE)
        self._send(requests)
        measured = self._answer()
        seconds = sorted(measured["seconds"])
        tenth = seconds[len(seconds) // 10]
        self.turns.append(Turn((median(seconds), tenth, measured["cpu"]), measured["stages"]))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else sys.exit(f"{self.name}: its process ended, with {self._process.wait()}")


def report(trees: Sequence[Tree]) -> str:
    """Three lines for each tree."""
    first, lines = trees[0], list[str]()
    for tree in trees:
        middle, tenth, cpu = (1e3 * median(turn.figures[place] for turn in tree.turns) for place in range(3))
        stages = [(one, 1e6 * median(turn.stages[one] for turn in tree.turns)) for one in sorted(tree.turns[0].stages)]
        pairs = [(base.figures, own.figures) for base, own in zip(first.turns, tree.turns, strict=True)]
        ratios = [median(base[place] / own[place] for base, own in pairs) for place in range(3)]
        lines += [
            f"{tree.name}: median {middle:.3f} ms, 10th percentile {tenth:.3f} ms, CPU time {cpu:.3f} ms",
            "  stages: " + ", ".join(f"{name} {value:.0f} us" for name, value in stages),
            f"  {ratios[0]:.3f} times as fast as {first.name} by medians, {ratios[1]:.3f} by 10th percentiles, "
            f"{ratios[2]:.3f} by CPU time",
        ]
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = program.parser("trees", __doc__)
    parser.add_argument("model")
    parser.add_argument("trees", nargs="+", metavar="NAME=PATH[;VARIABLE=VALUE]")
    parser.add_argument("--documents", type=int, default=10, help="of a request")
    parser.add_argument("--words", default="30", help="of a document, or `mixed` for 5 to 300")
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--requests", type=int, default=50, help="of a turn")
    parser.add_argument("--dtype")
    parser.add_argument("--quantization")
    given = parser.parse_intermixed_args()
    options = {name: value for name in ("dtype", "quantization") if (value := getattr(given, name)) is not None}
    low, high = MIXED if given.words == "mixed" else (int(given.words),) * 2
    corpus, lengths = Corpus(0), random.Random(0)
    needed = (given.turns + 1) * given.requests * (given.documents + 1)
    if min(given.turns, given.requests, given.documents, low) < 1 or needed > len(corpus.starts):
        parser.error(f"there are {len(corpus.starts)} texts for all turns; give smaller numbers, of at least 1")
    trees = [Tree(spec, given.model, options) for spec in given.trees]
    for tree in trees:
        tree.expect_ready()
    # The first turn warms up, and does not count.
    for number in range(given.turns + 1):
        requests = [
            (corpus.text(QUERY_WORDS), [corpus.text(lengths.randint(low, high)) for _ in range(given.documents)])
            for _ in range(given.requests)
        ]
        for tree in trees if number % 2 else reversed(trees):
            tree.answer(requests)
    for tree in trees:
        tree.close()
        del tree.turns[0]
    print(f"{given.documents} documents of {given.words} words, {given.turns} turns of {given.requests} requests")
    print(report(trees))


if __name__ == "__main__":
    program.run(main)
