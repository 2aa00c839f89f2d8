"""The instructions that an emulated program executes, counted while it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.backends.cpu.emulated_arm import EMULATOR

SOURCE = Path(__file__).with_name("count.c")
ROWS = 64
REPEATS = 2
"""By how many repetitions two counts differ."""


class Missing(Exception):
    """A tool that is not installed, and how to install it."""


class Work(NamedTuple):
    """A linear layer over ROWS rows, or a layer of a post-norm encoder over one document of ROWS tokens.

    name: "linear", or "layer", whose hidden states have `inputs` values and whose MLP has `outputs`
    precision: "float32", "bfloat16" or "int8", which includes rounding the rows
    """

    name: str
    precision: str
    inputs: int
    outputs: int

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of its matrix products."""
        if self.name == "linear":
            return ROWS * self.inputs * self.outputs
        return 2 * ROWS * self.inputs * (2 * self.inputs + self.outputs + ROWS)


def require(tool: str, package: str) -> None:
    """Missing, where a program is not installed. package: Debian's"""
    if shutil.which(tool) is None:
        raise Missing(f"There is no {tool}. Install Debian's {package}, or what your system has in its place.")


class Counter:
    """The count of one program that runs with `options`.

    folder: gets the plugin, compiled, and the file of counts
    """

    def __init__(self, folder: Path) -> None:
        require("cc", "gcc")
        plugin = folder / "count.so"
        version = subprocess.run([EMULATOR, "--version"], check=True, capture_output=True, text=True).stdout
        command = ["cc", "-O2", "-shared", "-fPIC", f"-DVERSION={plugin_version(version)}", SOURCE, "-o", plugin]
        subprocess.run(command, check=True)
        self._file = folder / "counts"
        self.options = ("-plugin", f"{plugin},counts={self._file}")

    def total(self) -> int:
        """The instructions of all threads until now, while the program waits."""
        return sum(array("Q", self._file.read_bytes()))

    def of_one(self, run: Callable[[int], object]) -> int:
        """The instructions of one repetition, without what is done once for all.

        run: has the program compute something this many times
        """
        run(1)  # later runs find the memory allocated and the kernels chosen
        counts = []
        for times in (1, 1 + REPEATS):
            before = self.total()
            run(times)
            counts.append(self.total() - before)
        return round((counts[1] - counts[0]) / REPEATS)


def plugin_version(line: str) -> int:
    """The version of QEMU's plugin interface that `qemu-aarch64 --version` implies: 9 refuses 1, 7 knows no other."""
    found = re.search(r"version (\d+)\.", line)
    if found is None:
        raise Missing(f"{EMULATOR} tells no version of QEMU: {line!r}")
    return 1 if int(found[1]) < 9 else 2
