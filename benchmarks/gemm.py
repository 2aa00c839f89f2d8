"""GEMMs alone, in 8 and 16 bits, as multiples of the rate in the unit's dtype.

usage: python -m benchmarks.gemm [UNIT ...]

One thread, and CPU time, so that other processes matter less. Of each GEMM the best of ROUNDS counts. The shapes are
those of MiniLM's and bge-reranker-v2-m3's layers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from benchmarks import program
from rerankd.backends.cpu.linear import DenseLinear, KernelLinear, Linear, int8_linear, int16_linear, kernel_linear
from rerankd.backends.cpu.native import UNITS, Kernels
from rerankd.backends.cpu.native.library import load_library, runs

ROWS, ROUNDS = 512, 40
SHAPES = ((384, 384), (384, 1536), (1536, 384), (1024, 1024), (1024, 4096), (4096, 1024))
"""Inputs and outputs."""


def seconds(compute: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    began = time.thread_time()
    compute()
    return time.thread_time() - began


def compare(kernels: Kernels, inputs: int, outputs: int) -> str:
    """A line of the rates of one shape."""
    generator = torch.Generator().manual_seed(0)
    x = kernels.to_blocked(torch.randn(ROWS, inputs, generator=generator).to(kernels.dtype))
    weight = torch.randn(outputs, inputs, generator=generator).to(kernels.dtype)
    linears: dict[str, Linear] = {
        str(kernels.dtype).removeprefix("torch."): kernel_linear(weight, None, kernels, DenseLinear),
        "int8": int8_linear(weight, None, kernels),
    }
    if kernels.largest_half:
        linears["int16"] = int16_linear(weight, None, kernels)
    out = kernels.empty_rows(ROWS, outputs)
    alone, whole = ({name: float("inf") for name in linears} for _ in range(2))
    for _ in range(ROUNDS):
        for name, linear in linears.items():
            assert isinstance(linear, KernelLinear)
            rows, packed = linear._prepare(x), linear.weight
            alone[name] = min(
                alone[name], seconds(lambda rows=rows, packed=packed: kernels.gemm(rows, packed, None, out))
            )
            whole[name] = min(whole[name], seconds(lambda linear=linear: linear(x, out=out)))
    first, *others = linears
    rate = ROWS * inputs * outputs / alone[first] / 1e9
    multiples = "; ".join(
        f"{name} {alone[first] / alone[name]:.2f}, with quantising {whole[first] / whole[name]:.2f}" for name in others
    )
    return (
        f"{kernels.unit.name} {inputs} to {outputs}: {first} {rate:.1f} thousand million multiply-adds/s; {multiples}"
    )


def main() -> None:
    """See the module."""
    parser = program.parser("gemm", __doc__)
    names = [unit.name for unit in UNITS]
    parser.add_argument("units", nargs="*", default=names, metavar="unit", help=f"of {', '.join(names)}")
    chosen = parser.parse_args().units
    if unknown := set(chosen).difference(names):
        parser.error(f"{', '.join(sorted(unknown))}: choose of {', '.join(names)}")
    torch.set_num_threads(1)
    loaded = load_library(torch.float32)
    if loaded is None:
        sys.exit("No kernels were built, or none for this processor.")
    library, _ = loaded
    for unit in UNITS:
        if unit.name in chosen and runs(library, unit):
            kernels = Kernels(library, unit)
            for inputs, outputs in SHAPES:
                print(compare(kernels, inputs, outputs), flush=True)


if __name__ == "__main__":
    main()
