"""Memory of the process: kept between batches, and given back to the kernel when nothing needs it."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from contextlib import suppress

_ON_LINUX = platform.system() == "Linux"
SLACK_BYTES = 64 << 20
"""Memory is trimmed when a process has this many bytes more than the least that it had since the last trim."""


def keep_freed_memory() -> None:
    """Let glibc keep large blocks for the next use instead of returning each to the kernel.

    A forward pass frees and asks for the same large tensors over and over; the page faults cost 20 % of it.

    Two arenas, in place of eight for each core: what one thread frees, another can use, so that a server that reads
    large bodies in many threads does not hold the most that each of them ever took.
    """
    if not _ON_LINUX:
        return
    with suppress(AttributeError, OSError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
        mallopt(m_arena_max, 2)
        mallopt(m_mmap_threshold, 2**31 - 1)
        mallopt(m_trim_threshold, 2**31 - 1)


def trim_memory() -> None:
    """Give freed memory back to the kernel once, `keep_freed_memory` or not."""
    if _ON_LINUX:
        with suppress(AttributeError, OSError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


def exempt_from_collection() -> None:
    """Exempt all existing objects from Python's cyclic garbage collection. A loaded server calls this function.

    A full collection stops every thread while it visits all objects. An idle server has a quarter of a million objects,
    almost all of modules that are never freed; under load a collection took half a second.
    """
    gc.collect()
    gc.freeze()


def free_memory() -> None:
    """Give back the memory of a model that nothing refers to any more, on the CPU and on a CUDA device."""
    exempt = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if exempt:
        gc.freeze()
    trim_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def trim_after_load() -> None:
    """Give back the memory and the threads that loading a model took; call it on the thread that has loaded.

    The OpenMP threads that wait for this thread's next parallel region end. The engine's thread has a team of its own.
    With two teams there are more threads than cores, and GNU's OpenMP then lets all of them sleep between regions: each
    operation costs a wake-up.
    """
    trim_memory()
    if _ON_LINUX:
        with suppress(OSError, AttributeError):  # another OpenMP, or none
            ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD).omp_pause_resource_all(1)


def resident_bytes() -> int:
    """The resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class Trimmer:
    """Trims the process when it holds much more than the least that it held since it was last trimmed.

    Images, long texts and large bodies take memory that glibc would keep for good.
    """

    def __init__(self) -> None:
        self._mark = 0

    def look(self) -> None:
        """Trim the memory if it has grown. Call this between batches: a trim takes memory that they would reuse."""
        resident = resident_bytes()
        if self._mark and resident > self._mark:
            trim_memory()
            self._mark = resident_bytes() + SLACK_BYTES
        else:
            self._mark = min(self._mark or resident + SLACK_BYTES, resident + SLACK_BYTES)
