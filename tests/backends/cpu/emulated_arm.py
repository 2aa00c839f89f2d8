"""The kernels' units for ARM, cross-compiled and run by qemu, behind the functions of the library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import Struct
from types import SimpleNamespace

import pytest

from rerankd.backends.cpu import native
from rerankd.backends.cpu.native.descriptors import OPERATIONS
from rerankd.backends.cpu.native.units import units_of

ARM_UNITS = {unit.name: unit for unit in units_of("aarch64")}
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SOURCES = Path(native.__file__).parent
FLAGS = ["-fopenmp", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
ADDRESSES = {
    "rms_norm": (2, 5, 7),
    "norm_rope": (3, 6, 8, 9, 10),
    "add_layer_norm": (2, 5, 8, 9, 11, 14),
    "embed_layer_norm": (2, 4, 5, 7, 8, 10, 11, 12, 14, 17),
    "to_blocked": (2, 5),
    "index_select": (1, 4, 7),
    "quantize": (2, 5, 7, 8),
    "gemm": (3, 5, 6, 7, 10, 14, 15, 16, 17),
    "attention": (1, 2, 6, 9, 12, 17),
}
"""The members of each operation's struct that are addresses."""

_PAGE, _MOVED = 4096, 1 << 46
_RUN, _PACK, _PACK_INT8, _RUNS, _LARGEST_WEIGHT = range(5)
_WANTED, _CHANGED, _RESULT = range(3)
_MESSAGE = Struct("3q")


def program(folder: Path, level: str = "-O1") -> Path:
    """The kernels and the program that calls them, compiled into a folder; skips the test where a tool is missing.

    level: of the compiler's optimisation; the package is built with -O3
    """
    for tool, package in ((COMPILER, "gcc-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} to run the kernels for ARM (Debian's {package})")

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([COMPILER, level, *FLAGS, "-c", source, "-o", target], check=True)
        return target

    sources = [*sorted(SOURCES.glob("*.c")), Path(__file__).with_suffix(".c")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([COMPILER, "-static", "-fopenmp", *objects, "-o", folder / "arm"], check=True)
    return folder / "arm"


class Emulator:
    """A process that calls the kernels on this process's memory. See emulated_arm.c."""

    def __init__(self, program: Path, cpu: str = "max", options: Sequence[str] = ()) -> None:
        """options: of the emulator"""
        self._process = subprocess.Popen(
            [EMULATOR, "-cpu", cpu, *options, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._memory = os.open("/proc/self/mem", os.O_RDWR)

    def call(self, function: int, *arguments: int, operations: bytes = b"") -> int:
        """The function's result, with its writes to memory done."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        request = [function, *arguments]
        stdin.write(Struct("8q").pack(*request, *[0] * (8 - len(request))) + operations)

        def received(size: int) -> bytes:
            data = b""
            while len(data) < size:
                more = stdout.read(size - len(data))
                assert more, f"the emulated kernels ended with {self._process.wait()}"
                data += more
            return data

        while True:
            kind, value, size = _MESSAGE.unpack(received(_MESSAGE.size))
            if kind == _RESULT:
                return value
            if kind == _WANTED:
                stdin.write(os.pread(self._memory, _PAGE, value))
            else:
                os.pwrite(self._memory, received(size), value)

    def runs(self, unit: native.Unit) -> bool:
        """Whether the emulated processor runs a unit."""
        return bool(self.call(_LARGEST_WEIGHT, unit.number) and self.call(_RUNS, unit.number))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        os.close(self._memory)

    def library(self, native_library: ctypes.CDLL) -> SimpleNamespace:
        """The functions of the library as Python calls them.

        native_library: the same sources for this machine, whose structs have the same sizes
        """

        def rerankd_run(threads: int, number: int, size: int, operations: bytes) -> int:
            assert size == len(operations)
            return self.call(_RUN, threads, number, size, operations=_moved_list(operations))

        def rerankd_pack(number: int, outputs: int, inputs: int, *addresses: int) -> None:
            self.call(_PACK, number, outputs, inputs, *map(_moved, addresses))

        def rerankd_pack_int8(number: int, outputs: int, inputs: int, *addresses: int) -> None:
            self.call(_PACK_INT8, number, outputs, inputs, *map(_moved, addresses))

        def rerankd_largest_weight(number: int) -> int:
            return self.call(_LARGEST_WEIGHT, number)

        return SimpleNamespace(
            rerankd_run=rerankd_run,
            rerankd_pack=rerankd_pack,
            rerankd_pack_int8=rerankd_pack_int8,
            rerankd_largest_weight=rerankd_largest_weight,
            rerankd_largest_sum=lambda number: 0,
            rerankd_largest_half=lambda number: 0,
            rerankd_agreed=native_library.rerankd_agreed,
        )


def _moved(address: int) -> int:
    return address ^ _MOVED if address else 0


def _moved_list(operations: bytes) -> bytes:
    """A command list whose addresses are those in the emulated process."""
    names, moved, at = list(OPERATIONS), b"", 0
    while at < len(operations):
        (number,) = Struct("q").unpack_from(operations, at)
        operands = Struct("q" + OPERATIONS[names[number]])
        values = list(operands.unpack_from(operations, at))
        for member in ADDRESSES[names[number]]:
            values[1 + member] = _moved(values[1 + member])
        moved += operands.pack(*values)
        at += operands.size
    return moved
