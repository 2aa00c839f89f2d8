"""Kernels in C: float32 from AVX2 on, and on 64-bit ARM; bfloat16 with AVX512-BF16, AMX or ARM's BF16.

The library is built with the package where there is a C compiler. Where there is no library, or the processor lacks the
instructions, `Kernels.load` returns None, and torch's own functions compute all operations.
"""

from rerankd.backends.cpu.native.kernels import Kernels, PackedWeight, QuantizedRows
from rerankd.backends.cpu.native.library import KernelsError
from rerankd.backends.cpu.native.units import UNITS, Unit

__all__ = ["UNITS", "Kernels", "KernelsError", "PackedWeight", "QuantizedRows", "Unit"]
