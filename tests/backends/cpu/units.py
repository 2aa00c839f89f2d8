"""The kernels by each unit that can multiply: the vector unit, and tiles, which are emulated where there are none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from rerankd.backends.cpu import native
from rerankd.backends.cpu.native import HAS_TILES, HAS_VECTORS, Kernels

UNITS = ("vectors", "tiles")


@cache
def kernels_by(unit: str) -> Kernels:
    """The kernels that multiply by one unit; skips the test where there are none for this processor, or no compiler."""
    found = Kernels.load()
    if found is None:
        pytest.skip("no kernels were built, or none for this processor")
    if unit == "vectors":
        return Kernels(found.library, HAS_VECTORS)
    return found if found.has_tiles else Kernels(_with_emulated_tiles(), HAS_VECTORS | HAS_TILES)


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the kernels use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
