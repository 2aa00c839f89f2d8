"""The units that kernels are compiled for: an instruction set, and the dtype of rows that it multiplies."""

from __future__ import annotations

import os
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


UNITS = tuple(
    Unit(number, name, dtype)
    for number, (name, dtype) in enumerate(
        {
            "avx2": torch.float32,
            "avxvnni": torch.float32,
            "avx512": torch.float32,
            "avx512_vnni": torch.float32,
            "avx512_bf16": torch.bfloat16,
            "amx": torch.bfloat16,
        }.items()
    )
)
"""From the slowest to the fastest."""


def allowed(unit: Unit) -> bool:
    """Whether the cap allows a unit. ModelError for a cap that is unknown."""
    cap = os.environ.get(CAP)
    if not cap:
        return True
    names = [one.name for one in UNITS]
    if cap not in names:
        raise ModelError(f"{CAP}={cap} names no instruction set; choose {', '.join(names)}, or leave it out.")
    return unit.number <= names.index(cap)


def allows(dtype: torch.dtype) -> bool:
    """Whether the cap allows any unit of a dtype."""
    return any(unit.dtype == dtype and allowed(unit) for unit in UNITS)
