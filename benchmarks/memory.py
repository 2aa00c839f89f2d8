"""How much memory a model takes in one process, and in replicas that share its weights.

usage: python -m benchmarks.memory MODEL [REPLICAS]

Each count from 1 on is loaded in turn, and scores one request that keeps all replicas busy. The figure is the
proportional set size of all processes together: a page that several have counts once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import program
from rerankd.bench.workloads import Corpus
from rerankd.core.counts import counted
from rerankd.reranker import Reranker

DOCUMENTS, WORDS = 256, 100


def family(pid: int) -> Iterator[int]:
    """A process, those that it started, and so on."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from family(int(child))


def proportional(pid: int) -> int:
    """Bytes that a process has, its part of those that it shares with others."""
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def measured(model: str, replicas: int) -> int:
    """Bytes of all processes that serve a model on the CPU, once each has computed."""
    with Reranker(model, device="cpu", data_parallel_size=replicas) as reranker:
        corpus = Corpus(0)
        reranker.rerank(corpus.text(10), [corpus.text(WORDS) for _ in range(DOCUMENTS)], show_progress=False)
        return sum(map(proportional, family(os.getpid())))


def main() -> None:
    """Print a row for each count of replicas."""
    parser = program.parser("memory", __doc__)
    parser.add_argument("model")
    parser.add_argument("replicas", nargs="?", type=int, default=2, help="the most replicas")
    given = parser.parse_args()
    for count in range(1, given.replicas + 1):
        # In a process of its own: what was freed before is not counted.
        child = os.fork()
        if child == 0:
            print(f"{counted(count, 'replica')}: {measured(given.model, count) / 1e6:.0f} MB", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(1)


if __name__ == "__main__":
    program.run(main)
