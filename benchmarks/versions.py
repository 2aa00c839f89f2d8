"""Two versions of rerankd on the same request, call by call in turn.

usage: python -m benchmarks.versions OLD NEW MODEL [--workload uniform:16] [--seconds 60] [option=value ...]

OLD and NEW are source trees with built kernels (`git worktree add`, `python setup.py build_ext --inplace`); options
are those of `Reranker`, such as `quantization=int8`. Each version has a process of its own that stays alive. On a
machine whose speed varies, the fastest calls and the median of the pairs' ratios say more than two runs do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rerankd.bench.workloads import Corpus, Workload

WORKER = """
import json, sys, time
from rerankd import Reranker
model, options, query, documents = json.loads(sys.stdin.readline())
reranker = Reranker(model, **options)
for _ in range(3):
    reranker.rerank(query, documents)
print("ready", flush=True)
for _ in sys.stdin:
    began = time.perf_counter()
    reranker.rerank(query, documents)
    print(time.perf_counter() - began, flush=True)
"""


class Version:
    """A process of one source tree."""

    def __init__(self, tree: Path, asked: str) -> None:
        path = {**os.environ, "PYTHONPATH": str(tree.resolve() / "src")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=path,
        )
        if self._ask(asked).strip() != "ready":
            sys.exit(f"{tree}: the version ended before it was ready")

    def seconds(self) -> float:
        """Of one more call."""
        return float(self._ask("go"))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


def main() -> None:
    """Print how many times as fast the new version is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("model")
    parser.add_argument("options", nargs="*", metavar="option=value")
    parser.add_argument("--workload", default="uniform:16")
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_intermixed_args()
    query, documents = Corpus(0).request(Workload.parse(given.workload))
    asked = json.dumps([given.model, dict(option.split("=", 1) for option in given.options), query, documents])
    old, new = Version(given.old, asked), Version(given.new, asked)
    pairs: list[tuple[float, float]] = []
    until = time.monotonic() + given.seconds
    while time.monotonic() < until:
        # The order turns round, so that neither version is always the first.
        before, after = old.seconds(), new.seconds()
        later = new.seconds()
        pairs += [(before, after), (old.seconds(), later)]
    for version in (old, new):
        version.close()
    fastest = [min(one) for one in zip(*pairs, strict=True)]
    print(
        f"{given.workload} {' '.join(given.options)}: the new version is {fastest[0] / fastest[1]:.3f} times as fast "
        f"by the fastest calls ({fastest[0] * 1e3:.1f} and {fastest[1] * 1e3:.1f} ms), "
        f"{median(before / after for before, after in pairs):.3f} by the median of {len(pairs)} pairs"
    )


if __name__ == "__main__":
    main()
