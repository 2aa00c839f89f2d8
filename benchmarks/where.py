"""Where a request's time goes: the engine's thread by function, as shares of the model's whole time.

usage: python -m benchmarks.where MODEL WORKLOAD [int8]

Each call of a kernel is a function of its own, so that Python's profiler tells them apart at little cost.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections.abc import Callable
from pathlib import Path

from rerankd.bench.workloads import Corpus, Workload
from rerankd.engine.batcher import Slice
from rerankd.reranker import Reranker

ROUNDS = 3
SHOWN = 10


def main() -> None:
    model, workload, *quantization = sys.argv[1:]
    corpus = Corpus(1)
    profile = cProfile.Profile()
    with Reranker(model, quantization=quantization[0] if quantization else None) as reranker:
        engine = reranker._engine
        reranker.rerank(*corpus.request(Workload.parse(workload)), show_progress=False)
        engine._forward = _profiled(engine._forward, profile)  # type: ignore[method-assign]
        for _ in range(ROUNDS):
            reranker.rerank(*corpus.request(Workload.parse(workload)), show_progress=False)
    stats = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    whole = sum(row[1][2] for row in rows)
    print(f"{model}, {workload}: {whole / ROUNDS:.2f} s a request")
    for (file, _, name), (_, calls, own, _, _) in rows[:SHOWN]:
        print(f"{own / whole:6.1%}  {calls // ROUNDS:6d} calls  {Path(file).parent.name}/{Path(file).name}:{name}")


def _profiled(
    forward: Callable[[list[Slice]], list[float]], profile: cProfile.Profile
) -> Callable[[list[Slice]], list[float]]:
    def profiled(batch: list[Slice]) -> list[float]:
        return profile.runcall(forward, batch)

    return profiled


if __name__ == "__main__":
    main()
