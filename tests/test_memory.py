"""Freed memory stays for the next batch, and goes back to the kernel when the engine idles."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from rerankd import memory

BLOCKS = """
import ctypes, sys, time
from rerankd.memory import Trimmer, keep_freed_memory, resident_bytes

keep_freed_memory()
trimmer = Trimmer()
trimmer.look()
before = resident_bytes()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(4 << 20) for _ in range(150)]
for block in blocks:
    ctypes.memset(block, 1, 4 << 20)
held = resident_bytes() - before
for block in blocks[:-1]:  # the last one keeps the heap's top where it is
    libc.free(block)
kept = resident_bytes() - before
trimmer.look()
left = resident_bytes() - before
print(held >> 20, kept >> 20, left >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heaps")
def test_memory_that_is_freed_is_kept_until_a_look_finds_much_of_it() -> None:
    code = [sys.executable, "-c", textwrap.dedent(BLOCKS)]
    output = subprocess.run(code, check=True, capture_output=True, text=True).stdout
    held, kept, left = map(int, output.split())
    assert held > 500
    assert kept > 500
    assert left < 100


COLLECTION = """
import gc, weakref
from rerankd.memory import exempt_from_collection, free_memory

class Loop:
    def __init__(self):
        self.itself = self

loaded, tracked = Loop(), len(gc.get_objects())
seen = weakref.ref(loaded)
exempt_from_collection()
print(len(gc.get_objects()) < tracked / 10)
del loaded
gc.collect()
print(seen() is not None)
free_memory()
print(seen() is None, len(gc.get_objects()) < tracked / 10)
"""


def test_the_collector_passes_over_what_was_loaded_until_a_model_is_unloaded() -> None:
    code = [sys.executable, "-c", textwrap.dedent(COLLECTION)]
    output = subprocess.run(code, check=True, capture_output=True, text=True).stdout
    assert output.split() == ["True"] * 4


def test_memory_is_trimmed_above_the_least_that_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly it has grown since, and once where it cannot be given back."""
    held, trimmed = [1000 << 20], []
    monkeypatch.setattr(memory, "resident_bytes", lambda: held[0])
    monkeypatch.setattr(memory, "trim_memory", lambda: trimmed.append(held[0]))
    trimmer = memory.Trimmer()
    for megabytes in (1000, 1030, 1060, 1064, 1070, 1070, 800, 830, 860, 870, 870):
        held[0] = megabytes << 20
        trimmer.look()
    assert [one >> 20 for one in trimmed] == [1070, 870]
