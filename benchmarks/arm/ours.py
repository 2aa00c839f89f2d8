"""The kernels for ARM in the emulator, called as the engine calls them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tests.backends.cpu.emulated_arm import ARM_UNITS, Emulator
from tests.backends.dense import RandomWeights, draw, shapes
from tests.backends.test_transformers import BERT

from benchmarks.arm.counting import ROWS, Counter, Missing, Work
from rerankd.backends.cpu.backend import KERNEL_ROW_TILE_VALUES
from rerankd.backends.cpu.linear import DenseLinear, Linear, int8_linear, kernel_linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.native.library import load_library
from rerankd.backends.cpu.norm import States
from rerankd.backends.cpu.runtime import Runtime
from rerankd.backends.cpu.transformer import post_norm_layer
from rerankd.core import Span
from rerankd.layers.layout import separate_layout
from rerankd.layers.spec import TransformerSpec


class Ours:
    """The kernels of an emulated processor's fastest units."""

    def __init__(self, folder: Path, program: Path, cpu: str) -> None:
        """program: `emulated_arm.program`'s. Missing, where the package was built without kernels."""
        native = load_library(torch.float32)
        if native is None:
            raise Missing("rerankd was built without kernels. Install a C compiler, then rerankd again.")
        self._counter = Counter(folder)
        self._emulator = Emulator(program, cpu, self._counter.options)
        self._library = self._emulator.library(native[0])
        self._times = 1
        run = self._library.rerankd_run

        def repeated(threads: int, number: int, size: int, operations: bytes) -> int:
            # Copies of the operations in one list: the memory that they use is borrowed once.
            code: int = run(threads, number, size * self._times, operations * self._times)
            return code

        self._library.rerankd_run = repeated

    def count(self, work: Work) -> tuple[int, str] | None:
        """The instructions of a work, and the unit that computes it; None where no unit has the precision."""
        dtype = torch.bfloat16 if work.precision == "bfloat16" else torch.float32
        units = [unit for unit in ARM_UNITS.values() if unit.dtype == dtype and self._emulator.runs(unit)]
        if not units:
            return None
        kernels = Kernels(self._library, units[-1])  # type: ignore[arg-type]
        own = partial(kernel_linear, otherwise=DenseLinear)
        make = partial(int8_linear if work.precision == "int8" else own, kernels=kernels)
        compute = (_linear if work.name == "linear" else _layer)(work, kernels, make)

        def run(times: int) -> None:
            self._times = times
            compute()
            self._times = 1

        return self._counter.of_one(run), units[-1].name

    def close(self) -> None:
        """End the emulated process."""
        self._emulator.close()


def _linear(work: Work, kernels: Kernels, make: Callable[..., Linear]) -> Callable[[], object]:
    linear = make(draw(work.outputs, work.inputs, seed=1).to(kernels.dtype), draw(work.outputs, seed=2))
    x = kernels.to_blocked(draw(ROWS, work.inputs, seed=3).to(kernels.dtype))
    out = kernels.empty_rows(ROWS, work.outputs)
    return lambda: linear(x, out=out)


def _layer(work: Work, kernels: Kernels, make: Callable[..., Linear]) -> Callable[[], object]:
    spec = shapes(TransformerSpec(BERT.layers[:1]), hidden=work.inputs, heads=work.inputs // 32, mlp=work.outputs)
    runtime = Runtime(kernels.dtype, kernels, make, make, KERNEL_ROW_TILE_VALUES)
    (weights,) = RandomWeights(spec, kernels.dtype).layers()
    layer = post_norm_layer(spec.layers[0], weights, runtime, 0)
    states, layout = States.of(draw(ROWS, work.inputs, seed=3), runtime), separate_layout([Span(0, ROWS)])

    def compute() -> None:
        with kernels.recorded():
            layer(states, layout)

    return compute
