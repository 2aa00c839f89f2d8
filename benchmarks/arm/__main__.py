"""Instructions that the kernels for ARM and torch execute for the same work, counted by an emulator.

usage: python -m benchmarks.arm [--torch FOLDER] [--cpu CPU ...]

Needs `qemu-aarch64` and a cross compiler. Instructions say nothing about time: processors execute several at once, and
some take longer than others. CPU is a processor that `qemu-aarch64` emulates; wide vectors (SVE) are off, as one
instruction of theirs does any number of multiply-adds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from tests.backends.cpu.emulated_arm import COMPILER, EMULATOR, program

from benchmarks.arm.counting import Missing, Work, require
from benchmarks.arm.ours import Ours
from benchmarks.arm.peer import Peer

CPUS = ("neoverse-n1", "max,sve=off")
WORKS = (
    *(
        Work("linear", precision, *shape)
        for precision in ("float32", "bfloat16", "int8")
        for shape in ((384, 384), (384, 1536), (1536, 384))
    ),
    *(Work("layer", precision, 384, 1536) for precision in ("float32", "bfloat16")),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--torch",
        type=Path,
        metavar="FOLDER",
        help="torch for ARM; if it is missing, the command that installs it is printed",
    )
    parser.add_argument("--cpu", nargs="+", default=CPUS, help="processors that qemu emulates")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        require(COMPILER, "gcc-aarch64-linux-gnu")
        require(EMULATOR, "qemu-user")
        with tempfile.TemporaryDirectory() as folder:
            print_table(Path(folder), args.cpu, args.torch)
    except Missing as error:
        sys.exit(str(error))


def print_table(folder: Path, cpus: list[str], site: Path | None) -> None:
    """Count and print, in lines of a table. site: see `Peer.compiled`; None to count no instructions of torch"""
    peer = None if site is None else Peer.compiled(folder, site)
    kernels = program(folder, "-O3")
    print("| processor | work | precision | rerankd | torch | rerankd's unit | torch's library |")
    print("|---|---|---|---|---|---|---|")
    for cpu in cpus:
        ours = Ours(folder, kernels, cpu)
        own = {work: count for work in WORKS if (count := ours.count(work)) is not None}
        ours.close()
        theirs = {} if peer is None else peer.counts(folder, cpu, own)
        for work, (count, unit) in own.items():
            others, library = theirs.get(work, (None, ""))
            name = f"{work.name} {work.inputs} to {work.outputs}"
            figures = f"{per_hundred(count, work)} | {per_hundred(others, work)}"
            print(f"| `{cpu}` | {name} | {work.precision} | {figures} | `{unit}` | {library} |", flush=True)


def per_hundred(instructions: int | None, work: Work) -> str:
    """Instructions for a hundred multiply-adds, or nothing where none were counted."""
    return "" if instructions is None else f"{100 * instructions / work.multiply_adds:.1f}"


if __name__ == "__main__":
    main()
