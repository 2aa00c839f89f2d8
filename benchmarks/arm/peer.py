"""torch for ARM in the emulator: a program of its C++ library."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from tests.backends.cpu.emulated_arm import EMULATOR

from benchmarks.arm.counting import ROWS, Counter, Missing, Work, require

SOURCE = Path(__file__).with_name("peer.cpp")
COMPILER = "aarch64-linux-gnu-g++"
LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
"""Debian's, of the cross compiler."""
INSTALL = (
    "pip install --target FOLDER --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 "
    "--platform manylinux_2_25_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 torch==2.13.0 "
    "'nvidia-cuda-cupti==13.0.*' 'nvidia-cuda-runtime==13.0.*'"
)
"""The wheel is built for CUDA too, and its library for the CPU needs two small ones of CUDA."""
SYSTEM_FILES = {
    "sys/devices/system/cpu/cpu0/regs/identification/midr_el1": "0x00000000414fd0c1\n",
    "proc/cpuinfo": "processor: 0\nCPU implementer: 0x41\nCPU architecture: 8\nCPU variant: 0x3\nCPU part: 0xd0c\n"
    "CPU revision: 1\n",
}
"""What torch's libraries read of a processor beside its features: its number, here a Neoverse N1's in every case."""


class Peer(NamedTuple):
    """torch's library and the program that calls it.

    site: where INSTALL installed torch
    program, system: the program, and the root of the file system that the emulator shows it
    """

    site: Path
    program: Path
    system: Path

    @classmethod
    def compiled(cls, folder: Path, site: Path) -> Peer:
        """The program, compiled into a folder. Missing, where torch for ARM or the compiler is."""
        torch = site / "torch"
        library = torch / "lib" / "libtorch_cpu.so"
        # Bytes 18 and 19 of an ELF file are the machine: 183 is AArch64.
        if not library.exists() or library.open("rb").read(20)[18:] != b"\xb7\x00":
            command = INSTALL.replace("FOLDER", str(site))
            raise Missing(f"There is no torch for 64-bit ARM in {site}. Install it:\n{command}")
        require(COMPILER, "g++-aarch64-linux-gnu")
        program, system = folder / "peer", folder / "system"
        for name, text in SYSTEM_FILES.items():
            (system / name).parent.mkdir(parents=True)
            (system / name).write_text(text)
        (system / "lib").symlink_to(LIBRARIES)
        options = ["-O1", "-std=c++20", "-isystem", torch / "include", "-Wl,--allow-shlib-undefined"]
        libraries = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
        subprocess.run([COMPILER, *options, SOURCE, *libraries, "-o", program], check=True)
        # Fortran's library names zlib, and calls none of its functions.
        empty = ["-shared", "-nostdlib", "-x", "c++", "/dev/null", "-Wl,-soname,libz.so.1"]
        subprocess.run([COMPILER, *empty, "-o", folder / "libz.so.1"], check=True)
        return cls(site, program, system)

    def start(self, cpu: str, *options: str, verbose: bool = False) -> subprocess.Popen[str]:
        """The program in an emulated processor. options: of the emulator; verbose: whether oneDNN tells what it runs"""
        libraries = f"{self.site / 'torch' / 'lib'}:{self.program.parent}"
        words = [EMULATOR, "-cpu", cpu, "-L", self.system, *options]
        for variable in (f"LD_LIBRARY_PATH={libraries}", "OMP_NUM_THREADS=1", f"ONEDNN_VERBOSE={int(verbose)}"):
            words += ["-E", variable]
        return subprocess.Popen([*words, self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def counts(self, folder: Path, cpu: str, works: Collection[Work]) -> dict[Work, tuple[int, str]]:
        """The instructions of each work, and the library that computes its products."""
        told = self.start(cpu, verbose=True)
        libraries = {work: library_of(ask(told, work, 1)) for work in works}
        told.communicate()
        counter = Counter(folder)
        counted = self.start(cpu, *counter.options)
        found = {work: counter.of_one(lambda times, work=work: ask(counted, work, times)) for work in works}
        counted.communicate()
        return {work: (found[work], libraries[work]) for work in works}


def ask(process: subprocess.Popen[str], work: Work, times: int) -> list[str]:
    """What the program prints while it computes a work, the lines of oneDNN first. RuntimeError where it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(work.name, work.precision, ROWS, work.inputs, work.outputs, times, file=process.stdin, flush=True)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if not line.startswith("onednn_verbose"):
            return lines
    raise RuntimeError(f"torch ended with {process.wait()} on {work}.")


def library_of(lines: Iterable[str]) -> str:
    """The library that computes the products, by `ask`: oneDNN's implementations, or what the last line names."""
    *told, otherwise = lines
    pattern = re.compile(r"exec,cpu,(?:matmul|inner_product|convolution),([^,]+),")
    names = dict.fromkeys(found[1] for line in told if (found := pattern.search(line)))
    return f"oneDNN {', '.join(names)}" if names else otherwise
