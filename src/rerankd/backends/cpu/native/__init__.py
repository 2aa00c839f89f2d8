"""Kernels in C for bfloat16 on x86-64 with AVX512-BF16, by AMX where the processor has AMX.

The library is built with the package where there is a C compiler. Where there is no library, or the processor lacks the
instructions, `Kernels.load` returns None, and torch's own functions compute all operations.
"""

from rerankd.backends.cpu.native.kernels import Int8Rows, Kernels, PackedWeight
from rerankd.backends.cpu.native.library import HAS_TILES, HAS_VECTORS, KernelsError

__all__ = ["HAS_TILES", "HAS_VECTORS", "Int8Rows", "Kernels", "KernelsError", "PackedWeight"]
