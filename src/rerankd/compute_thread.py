"""One thread that computes for several engines, so that each of their batches has all cores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")


class Compute(Protocol):
    """Runs a batch: returns or raises as it does."""

    def __call__(self, batch: Callable[[], T], /) -> T: ...


def in_this_thread(batch: Callable[[], T], /) -> T:
    """`Compute` of an engine whose own thread computes."""
    return batch()


class ComputeThread:
    """Runs the batches of several engines, one after another in the order in which the engines ask.

    Each thread that computes has an OpenMP team of its own. Two teams are more threads than there are cores: they take
    time from each other while both compute, and GNU's OpenMP lets them sleep at the end of each parallel region.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rerankd-compute")

    def run(self, batch: Callable[[], T], /) -> T:
        """`Compute`: run a batch when those before it are done."""
        return self._thread.submit(batch).result()
