"""The kernels of each unit: those that this processor has, and AMX, which is emulated where there is none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rerankd.backends.cpu import native
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.native.library import load_library, runs

UNITS = {unit.name: unit for unit in native.UNITS}
UNITS_WITH_HALVES = [name for name in ("avx2", "avxvnni", "avx512_vnni") if name in UNITS]
"""Those that multiply 16-bit codes faster than float32."""


@cache
def kernels_by(unit: str) -> Kernels:
    """The kernels of one unit; skips the test where there are none for this processor, or no compiler."""
    found, wanted = load_library(torch.float32), UNITS[unit]
    if found is None:
        pytest.skip("no kernels were built, or none for this processor")
    library, _ = found
    if runs(library, wanted):
        return Kernels(library, wanted)
    if unit == "amx" and runs(library, UNITS["avx512_bf16"]):
        return Kernels(_with_emulated_tiles(), wanted)
    pytest.skip(f"this processor does not run {unit}, or the compiler did not know it")


def _with_emulated_tiles() -> ctypes.CDLL:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no AMX here, and no gcc to emulate it")
    sources = sorted(Path(native.__file__).parent.glob("*.c"))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "kernels.so")
        flags = ["-O2", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno"]
        emulation = Path(__file__).with_name("emulated_tiles.h")
        subprocess.run([compiler, *flags, "-include", emulation, *sources, "-o", library], check=True)
        return ctypes.CDLL(str(library))


class Codes(NamedTuple):
    """The largest code of a row, whose least is 0, and of a channel of a weight, whose least is its negative.

    four: the largest sum of a channel's codes of one sign at inputs i, i + 1, i + 4 and i + 5; 0 for any
    """

    row: int = 255
    weight: int = 127
    four: int = 0


def codes(unit: str) -> Codes:
    """The codes of a unit's 8-bit rows and weights: without VNNI four products have to fit in 16 bits."""
    return Codes(255, 127, 128) if unit in ("avx2", "avx512") else Codes()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the kernels use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
