"""Scores and speed of whole models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.batches import group, mixed, packed, tokens, uniform
from benchmarks.gpu.shapes import FULL, SMALL, Shape, gemm_operations, load
from benchmarks.gpu.timing import Bench
from rerankd.backends.cuda.backend import CudaBackend
from rerankd.backends.select import Placement
from rerankd.backends.torch.backend import TorchBackend
from rerankd.core import PromptGroup
from rerankd.models.base import Model

BUDGET = 32768
"""Tokens of a batch."""


def request(bench: Bench, model: Model, suffixes: Sequence[int], seed: int = 0) -> PromptGroup:
    """One request of such documents; of a twentieth of their tokens where the script itself is tried."""
    if not bench.small:
        return group(model.shares_prefix, suffixes, seed)
    return group(model.shares_prefix, [max(1, length // 20) for length in suffixes], seed, prefix_tokens=4)


def shapes(bench: Bench) -> list[Shape]:
    found = SMALL if bench.small else FULL
    return [shape for shape in found if not bench.wanted or shape.name in bench.wanted]


def ours(bench: Bench, fp8: bool = False) -> Placement:
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    return Placement((CudaBackend(bench.device, dtype, fp8),), BUDGET)


def scores(bench: Bench) -> None:
    """Scores of the fused path and of plain tensors, both in bfloat16, against plain tensors in float32."""
    for shape in shapes(bench)[:3]:
        exact = load(shape, Placement((TorchBackend(bench.device, torch.float32),), BUDGET))
        groups = [
            request(bench, exact, mixed(3 if bench.small else 24, seed, shape.longest), seed) for seed in range(2)
        ]
        wanted = _scores(exact, groups, bench)
        del exact
        plain = load(shape, Placement((TorchBackend(bench.device, torch.bfloat16),), BUDGET))
        fused = load(shape, ours(bench))
        found = {"plain": _scores(plain, groups, bench), "fused": _scores(fused, groups, bench)}
        for layer in _layers(fused):
            layer.fuses_gelu = False
        found["fused, exact GELU"] = _scores(fused, groups, bench)
        one_by_one = [_scores(fused, [one], bench) for one in groups]
        found["fused, by request"] = torch.cat(one_by_one)
        for name, values in found.items():
            error = (values - wanted).abs()
            bench.tell(
                step="scores", model=shape.name, path=name, spread=wanted.std().item(), error=error.max().item(),
                mean_error=error.mean().item(),
            )  # fmt: skip


def speed(bench: Bench) -> None:
    """Pairs a second in full batches, uniform and mixed, and the latency of ten short documents."""
    for shape in shapes(bench):
        model = load(shape, ours(bench))
        measure(shape, model, bench, "bfloat16")
        del model
        _empty(bench)


def fp8(bench: Bench) -> None:
    """The same in float8, and how far scores move."""
    for shape in shapes(bench):
        if shape.name in ("qwen3-0.6b", "qwen3-4b", "qwen3-8b", "qwen3-small"):
            model = load(shape, ours(bench))
            groups = [request(bench, model, mixed(3 if bench.small else 24, seed), seed) for seed in range(2)]
            wanted = _scores(model, groups, bench)
            del model
            _empty(bench)
            model = load(shape, ours(bench, fp8=True))
            error = (_scores(model, groups, bench) - wanted).abs()
            bench.tell(step="fp8", model=shape.name, error=error.max().item(), mean_error=error.mean().item())
            measure(shape, model, bench, "fp8")
            del model
            _empty(bench)


def measure(shape: Shape, model: Model, bench: Bench, dtype: str) -> None:
    per_pair = 95 + 170
    fill = 4 if bench.small else (BUDGET - 95) // 170 if model.shares_prefix else BUDGET // per_pair
    short = [20] * (2 if bench.small else 10)
    for kind, suffixes in (("uniform", uniform(fill)), ("mixed", mixed(fill, most=shape.longest)), ("short", short)):
        groups = [request(bench, model, suffixes)]

        def run(groups: list[PromptGroup] = groups) -> None:
            model(packed(model, groups, bench.device)).tolist()

        seconds = bench.median(run, 1.5)
        device_only = None
        if kind != "short":
            batch = packed(model, groups, bench.device)
            device_only = bench.each(lambda: model(batch), 5)  # noqa: B023 - called at once
        computed = tokens(groups)
        operations = gemm_operations(shape) * computed
        best = min(seconds, device_only or seconds)
        bench.tell(
            step="speed", model=shape.name, dtype=dtype, kind=kind, documents=len(suffixes), tokens=computed,
            ms=round(seconds * 1e3, 2), device_ms=device_only and round(device_only * 1e3, 2),
            pairs_per_second=round(len(suffixes) / seconds), device_pairs_per_second=round(len(suffixes) / best),
            tflops=round(operations / best / 1e12),
            share=round(operations / best / 1e12 / bench.rates.get("bfloat16", 1), 3),
        )  # fmt: skip


def profile(bench: Bench) -> None:
    """One batch by kernel: the times of the device, and what of the batch's time no kernel ran."""
    for shape in shapes(bench):
        if shape.name not in ("qwen3-0.6b", "bge-v2-m3", "minilm-l6", "qwen3-small"):
            continue
        model = load(shape, ours(bench))
        fill = 4 if bench.small else BUDGET // 265
        groups = [request(bench, model, uniform(fill))]
        for _ in range(2):
            model(packed(model, groups, bench.device)).tolist()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if bench.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as found:
            model(packed(model, groups, bench.device)).tolist()
        rows: dict[str, list[float]] = {}
        first, last = float("inf"), 0.0
        for event in found.events():
            if bench.device.type == "cuda" and event.device_type == torch.autograd.DeviceType.CUDA:
                own = rows.setdefault(event.name[:70], [0, 0.0])
                own[0] += 1
                own[1] += event.time_range.elapsed_us()
                first, last = min(first, event.time_range.start), max(last, event.time_range.end)
        busy = sum(row[1] for row in rows.values())
        bench.tell(step="profile", model=shape.name, busy_ms=busy / 1e3, span_ms=(last - first) / 1e3)
        for name, (count, microseconds) in sorted(rows.items(), key=lambda item: -item[1][1])[:14]:
            bench.tell(step="profile", kernel=name, count=int(count), ms=round(microseconds / 1e3, 3))
        del model
        _empty(bench)


def _scores(model: Model, groups: Sequence[PromptGroup], bench: Bench) -> torch.Tensor:
    found: Any = model(packed(model, groups, bench.device)).sigmoid().float().cpu()
    return found


def _layers(model: Model) -> Sequence[Any]:
    transformer: Any = getattr(model, "transformer", None)
    return getattr(transformer, "layers", ())


def _empty(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
