"""How fast the processor's vector unit multiplies at all: no GEMM by it is faster.

usage: python -m benchmarks.peak
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks import program
from rerankd.backends.cpu.native import Kernels

SOURCE = Path(__file__).parent / "peak.c"
SUMS = 24
MULTIPLY_ADDS: Mapping[str, int] = {"bfloat16": 32, "int8": 64}
"""Of one instruction."""
REPEATS = 300
ROUNDS = 1_000_000


def main() -> None:
    peak = peak_rates()
    if peak is None:
        sys.exit("The peak is measured of processors that have AVX512-BF16 and no AMX.")
    for kind, rate in peak.items():
        print(f"{kind}: {2e-9 * rate:.0f} GFLOP/s")


def peak_rates() -> Mapping[str, float] | None:
    """Multiply-adds a second by precision, on torch's threads: of many short runs the best, as other tenants slow some.

    None where the vector unit does not compute GEMMs: without AVX512-BF16, and with AMX
    """
    kernels = Kernels.load(torch.bfloat16)
    if kernels is None or kernels.unit.name == "amx":
        return None
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "peak.so"
        options = ("-O2", "-march=x86-64-v4", "-fopenmp", "-shared", "-fPIC")
        subprocess.run(["cc", *options, SOURCE, "-o", built], check=True)
        library = ctypes.CDLL(str(built))
    return {
        kind: threads * ROUNDS * SUMS * count / min(_seconds(library[kind], threads) for _ in range(REPEATS))
        for kind, count in MULTIPLY_ADDS.items()
    }


def _seconds(loop: ctypes._NamedFuncPointer, threads: int) -> float:
    start = time.perf_counter()
    loop(ctypes.c_int(threads), ctypes.c_int64(ROUNDS))
    return time.perf_counter() - start


if __name__ == "__main__":
    program.parser("peak", __doc__).parse_args()
    main()
