"""The units that kernels are compiled for: an instruction set, and the dtype of rows that it multiplies."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

import torch

from rerankd.core import ModelError

CAP = "RERANKD_ISA"
"""The environment variable that names the highest unit to use, for tests and comparisons."""


class Unit(NamedTuple):
    """An instruction set and a dtype of rows. number: of `UNITS` in operations.h"""

    number: int
    name: str
    dtype: torch.dtype


_X86 = {
    "avx2": torch.float32,
    "avxvnni": torch.float32,
    "avx512": torch.float32,
    "avx512_vnni": torch.float32,
    "avx512_bf16": torch.bfloat16,
    "amx": torch.bfloat16,
}
_ARM = {
    "neon": torch.float32,
    "neon_dotprod": torch.float32,
    "neon_i8mm": torch.float32,
    "neon_bf16": torch.bfloat16,
}


def units_of(machine: str) -> tuple[Unit, ...]:
    """The units of an architecture, from the slowest to the fastest. machine: as `platform.machine` names it"""
    names = _X86 if machine in ("x86_64", "AMD64") else _ARM if machine in ("aarch64", "arm64") else {}
    units = (Unit(number, name, dtype) for number, (name, dtype) in enumerate({**_X86, **_ARM}.items()))
    return tuple(unit for unit in units if unit.name in names)


UNITS = units_of(platform.machine())
"""Those of this machine's architecture."""


def allowed(unit: Unit) -> bool:
    """Whether the cap allows a unit. ModelError for a cap that is unknown."""
    cap = os.environ.get(CAP)
    if not cap:
        return True
    numbers = {one.name: one.number for one in UNITS}
    if cap not in numbers:
        raise ModelError(
            f"{CAP}={cap} names no instruction set of {platform.machine()}; choose {', '.join(numbers) or 'none'}, or "
            "leave it out."
        )
    return unit.number <= numbers[cap]


def allows(dtype: torch.dtype) -> bool:
    """Whether the cap allows any unit of a dtype."""
    return any(unit.dtype == dtype and allowed(unit) for unit in UNITS)
