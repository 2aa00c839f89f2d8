"""Kernels in C for x86-64: float32 from AVX2 on, bfloat16 with AVX512-BF16 or AMX.

The library is built with the package where there is a C compiler. Where there is no library, or the processor lacks the
instructions, `Kernels.load` returns None, and torch's own functions compute all operations.
"""

from rerankd.backends.cpu.native.kernels import Int8Rows, Kernels, PackedWeight
from rerankd.backends.cpu.native.library import KernelsError
from rerankd.backends.cpu.native.units import UNITS, Unit

__all__ = ["UNITS", "Int8Rows", "Kernels", "KernelsError", "PackedWeight", "Unit"]
