"""Where a request's time goes: the engine's thread by function, as shares of the model's whole time.

usage: python -m benchmarks.where MODEL WORKLOAD [int8]

Where the project's own kernels run, the requests come twice: first as ever, to see for how long no kernel runs; then
each operation by a call and a function of its own, which Python's profiler tells apart at little cost. The GEMMs'
multiply-adds are counted by precision, with those of attention, and it says what share of the first time they would
take at the rates of torch's GEMMs. With `int8` some stay in bfloat16, and so does attention: how much of the limit
in 8 bits that leaves within reach comes next. On a processor whose peak is known (`benchmarks.peak`) the last line has
the seconds below which nothing that multiplies as much on it can get.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from types import FunctionType
from typing import Any

import torch

from benchmarks import program
from benchmarks.peak import peak_rates
from rerankd.backends.cpu.layers import Layers
from rerankd.backends.cpu.native import Kernels, PackedWeight, QuantizedRows
from rerankd.backends.cpu.native.descriptors import OPERATIONS
from rerankd.backends.cpu.rows import BlockedTensor
from rerankd.bench.limit import Kind, Lengths, gemm_rate, work
from rerankd.bench.workloads import KINDS, Corpus, Workload
from rerankd.engine.batcher import Slice
from rerankd.models.checkpoint.json_files import read_json
from rerankd.reranker import Reranker

ROUNDS = 3
SHOWN = 10


def main() -> None:
    parser = program.parser("where", __doc__)
    parser.add_argument("model")
    parser.add_argument("workload", type=Workload.parse, help="such as uniform:20")
    parser.add_argument("quantization", nargs="?", choices=("int8",))
    given = parser.parse_args()
    corpus = Corpus(1)
    profile = cProfile.Profile()
    done: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    with Reranker(given.model, quantization=given.quantization) as reranker:
        engine = reranker._engine
        chosen = given.workload
        reranker.rerank(*corpus.request(chosen), show_progress=False)
        requests = [corpus.request(chosen) for _ in range(ROUNDS * KINDS[chosen.kind].requests)]
        forward, run = engine._forward, Kernels._run
        engine._forward = _timed(forward, seconds, "forward")  # type: ignore[method-assign]
        Kernels._run = _timed(run, seconds, "kernels")  # type: ignore[method-assign]
        results = [reranker.rerank(*request, show_progress=False) for request in requests]
        Kernels._run = run  # type: ignore[method-assign]
        engine._forward = _profiled(forward, profile)  # type: ignore[method-assign]
        Kernels._compute = _apart(tuple(OPERATIONS))  # type: ignore[method-assign]
        Layers.through = _one_by_one  # type: ignore[method-assign, assignment]
        Kernels.gemm = _counted(Kernels.gemm, done)  # type: ignore[method-assign]
        for request in requests:
            reranker.rerank(*request, show_progress=False)
        config, kind = read_json(reranker.info.path / "config.json"), Kind.of(reranker)
    stats = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    whole = sum(row[1][2] for row in rows)
    print(f"{given.model}, {given.workload}: {seconds['forward'] / len(requests):.3g} s a request")
    for (file, _, name), (_, calls, own, _, _) in rows[:SHOWN]:
        print(
            f"{own / whole:6.1%}  {calls // len(requests):6d} calls  {Path(file).parent.name}/{Path(file).name}:{name}"
        )
    if not done:
        return
    idle = seconds["forward"] - seconds["kernels"]
    print(f"no kernel runs: {idle / seconds['forward']:.1%}, {1e3 * idle / len(requests):.3g} ms a request")
    works = [work(config, kind, Lengths.of(result)) for result in results]
    done[reranker.info.dtype] += sum(one.attention for one in works)
    rates = {kind: gemm_rate(works[0], kind) for kind in sorted(done)}
    shares = ", ".join(
        f"{done[kind] / done.total():.1%} in {kind} ({2e-9 * rates[kind]:.0f} GFLOP/s)" for kind in rates
    )
    least = sum(done[kind] / rate for kind, rate in rates.items())
    print(f"multiply-adds: {shares}, by torch's GEMMs {least / seconds['forward']:.0%} of the time")
    if "int8" in done:
        print(f"which leaves {done.total() / rates['int8'] / least:.2f} of the limit in int8 within reach")
    if peak := peak_rates():
        least = sum(done[kind] / peak[kind] for kind in rates)
        print(f"nothing but these multiply-adds, at the processor's peak: {least / len(requests):.3g} s a request")


def _timed(function: Callable[..., Any], seconds: Counter[str], name: str) -> Callable[..., Any]:
    """The function, adding up the seconds that it takes."""

    def timed(*arguments: Any) -> Any:
        start = perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds[name] += perf_counter() - start  # type: ignore[assignment]

    return timed


def _apart(names: Sequence[str]) -> Callable[..., None]:
    """`Kernels._compute` that computes each operation at once, in a function that bears its name."""

    def run(kernels: Kernels, operation: bytes) -> None:
        kernels.library.rerankd_run(torch.get_num_threads(), kernels.unit.number, len(operation), operation)

    named = [FunctionType(run.__code__.replace(co_name=name), run.__globals__) for name in names]

    def compute(kernels: Kernels, operation: bytes, *used: object) -> None:
        named[int.from_bytes(operation[:8], sys.byteorder)](kernels, operation)

    return compute


def _one_by_one(layers: Layers[Any], compute: Callable[[Any], object], first: int = 0) -> None:
    """`Layers.through` without copies of operations, of which none are recorded."""
    for layer in layers._layers[first:]:
        compute(layer)


def _counted(gemm: Callable[..., None], done: Counter[str]) -> Callable[..., None]:
    """`Kernels.gemm` that adds up its multiply-adds by precision."""

    def counted(kernels: Kernels, rows: BlockedTensor | QuantizedRows, weight: PackedWeight, *rest: Any) -> None:
        codes = rows.codes if isinstance(rows, QuantizedRows) else rows
        kind = str(kernels.dtype if weight.scales is None else weight.packed.dtype).removeprefix("torch.")
        done[kind] += len(codes) * weight.packed.numel()
        gemm(kernels, rows, weight, *rest)

    return counted


def _profiled(
    forward: Callable[[list[Slice]], list[float]], profile: cProfile.Profile
) -> Callable[[list[Slice]], list[float]]:
    def profiled(batch: list[Slice]) -> list[float]:
        return profile.runcall(forward, batch)

    return profiled


if __name__ == "__main__":
    program.run(main)
