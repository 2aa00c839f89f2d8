"""Large blocks that are freed go back to the kernel."""

from __future__ import annotations

import ctypes
import platform

_MMAP_THRESHOLD = -3
_DEFAULT = 128 << 10


def return_freed_blocks() -> None:
    """Let glibc map each large block on its own, as it begins to, so that freeing one gives its memory back.

    Otherwise glibc learns from large blocks that are freed to keep such blocks in its heaps, one for each thread: a
    picture that is gone then still takes its memory, and another thread cannot use it. The value is glibc's own.
    """
    if platform.system() != "Linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, _DEFAULT)
