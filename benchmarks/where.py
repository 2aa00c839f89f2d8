"""Where a request's time goes: the engine's thread by function, as shares of the model's whole time.

usage: python -m benchmarks.where MODEL WORKLOAD [int8]

Each call of a kernel is a function of its own, so that Python's profiler tells them apart at little cost. Where the
project's own products run, their multiply-adds are counted by precision, and it says what share of the time all
multiply-adds would take at the rates of torch's products: with `int8` some stay in bfloat16, as attention does.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rerankd.bench.limit import Lengths, gemm_rate, work
from rerankd.bench.workloads import Corpus, Workload
from rerankd.engine.batcher import Slice
from rerankd.layers.native import Int8Rows, Kernels, TiledWeight
from rerankd.layers.rows import StripRows
from rerankd.models.config import read_json
from rerankd.reranker import Reranker

ROUNDS = 3
SHOWN = 10


def main() -> None:
    model, workload, *quantization = sys.argv[1:]
    corpus = Corpus(1)
    profile = cProfile.Profile()
    done: Counter[str] = Counter()
    with Reranker(model, quantization=quantization[0] if quantization else None) as reranker:
        engine = reranker._engine
        reranker.rerank(*corpus.request(Workload.parse(workload)), show_progress=False)
        engine._forward = _profiled(engine._forward, profile)  # type: ignore[method-assign]
        Kernels.product = _counted(Kernels.product, done)  # type: ignore[method-assign]
        config, family = read_json(reranker.info.path / "config.json"), reranker.info.family
        works = [
            work(
                config,
                family,
                Lengths.of(reranker.rerank(*corpus.request(Workload.parse(workload)), show_progress=False)),
            )
            for _ in range(ROUNDS)
        ]
    stats = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    whole = sum(row[1][2] for row in rows)
    print(f"{model}, {workload}: {whole / ROUNDS:.3g} s a request")
    for (file, _, name), (_, calls, own, _, _) in rows[:SHOWN]:
        print(f"{own / whole:6.1%}  {calls // ROUNDS:6d} calls  {Path(file).parent.name}/{Path(file).name}:{name}")
    if not done:
        return
    rates = {kind: gemm_rate(works[0], kind) for kind in sorted({"bfloat16", *done})}
    shares = ", ".join(f"{done[kind] / done.total():.1%} in {kind}" for kind in rates)
    named = ", ".join(f"{kind} {2e-9 * rate:.0f}" for kind, rate in rates.items())
    least = sum(count / rates[kind] for kind, count in done.items())
    least += sum(one.attention for one in works) / rates["bfloat16"]
    print(f"multiply-adds of products: {shares}")
    print(f"with attention's, at the rates of torch's products (GFLOP/s: {named}): {least / whole:.0%} of the time")


def _counted(product: Callable[..., None], done: Counter[str]) -> Callable[..., None]:
    """`Kernels.product` that adds up its multiply-adds by precision."""

    def counted(kernels: Kernels, rows: StripRows | Int8Rows, weight: TiledWeight, *rest: Any) -> None:
        codes = rows.codes if isinstance(rows, Int8Rows) else rows
        done["bfloat16" if weight.scales is None else "int8"] += len(codes) * weight.tiles.numel()
        product(kernels, rows, weight, *rest)

    return counted


def _profiled(
    forward: Callable[[list[Slice]], list[float]], profile: cProfile.Profile
) -> Callable[[list[Slice]], list[float]]:
    def profiled(batch: list[Slice]) -> list[float]:
        return profile.runcall(forward, batch)

    return profiled


if __name__ == "__main__":
    main()
