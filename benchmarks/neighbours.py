"""What an engine keeps of its rate beside as many busy processes as there are cores: half would be the fair share.

usage: python -m benchmarks.neighbours --checkpoints FOLDER [--case MODEL/WORKLOAD] [--engines [ISA/]ENGINE[:DTYPE] ...]

Rounds without and with the busy processes alternate, each on new documents, so that what slows the machine for a while
slows both. ISA is a value of RERANKD_ISA.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import program
from benchmarks.checkpoints import checkpoint
from benchmarks.engines import EXPORT_PACKAGES, EXPORTED, Engine, Spec
from rerankd.bench.workloads import Corpus, Workload

ENGINES = ("avx2/rerankd:float32", "avx512/rerankd:float32", "avx512_vnni/rerankd:int8", "rerankd:bfloat16")
LEAST_SECONDS = 3.0
"""Of one round."""
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Ends with the process that started it, however that ends."""
SETTLED_SECONDS = 0.5


def main() -> None:
    parser = program.parser("neighbours", __doc__)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of random checkpoints; made if missing")
    parser.add_argument("--case", default="bert-minilm/mixed:64", metavar="MODEL/WORKLOAD")
    parser.add_argument("--engines", nargs="+", default=ENGINES, metavar="[ISA/]ENGINE[:DTYPE]")
    parser.add_argument("--export-python", type=Path, help=f"python of a venv with {EXPORT_PACKAGES}")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    name, _, kind = given.case.partition("/")
    model, workload = checkpoint(given.checkpoints, name), Workload.parse(kind)
    programs = dict.fromkeys(EXPORTED, given.export_python) if given.export_python else {}
    print(f"{'engine':<26} {'alone':>8} {'busy':>8} {'kept, median':>13} {'range'}")
    for one in given.engines:
        isa, _, engine = one.rpartition("/")
        os.environ.pop("RERANKD_ISA", None)
        if isa:
            os.environ["RERANKD_ISA"] = isa
        with Engine(Spec.parse(engine), model, programs) as running:
            corpus = Corpus(0)
            rate(running, corpus, workload)
            alone, beside = [], []
            for _ in range(given.rounds):
                alone.append(rate(running, corpus, workload))
                with busy():
                    beside.append(rate(running, corpus, workload))
        kept = [b / a for a, b in zip(alone, beside, strict=True)]
        print(
            f"{one:<26} {median(alone):>8.1f} {median(beside):>8.1f} {median(kept):>13.2f} "
            f"{min(kept):.2f} to {max(kept):.2f}",
            flush=True,
        )


def rate(engine: Engine, corpus: Corpus, workload: Workload) -> float:
    """Documents a second, of as many requests as take a few seconds."""
    documents, seconds = 0, 0.0
    while seconds < LEAST_SECONDS:
        seconds += engine.score(*corpus.request(workload))["seconds"]
        documents += workload.documents
    return documents / seconds


@contextmanager
def busy() -> Iterator[None]:
    """As many processes as there are cores, each of which only computes."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
    try:
        time.sleep(SETTLED_SECONDS)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    program.run(main)
