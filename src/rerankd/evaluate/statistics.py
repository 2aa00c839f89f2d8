"""Whether chance can explain a difference between two rankings: a paired randomisation test, corrected for several
tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EXACT_UP_TO = 16
"""Queries of which all changes of sign are tried."""
SAMPLES = 100_000
SAMPLES_AT_ONCE = 10_000
EQUAL = 1e-9
"""Values of a measure that differ by less are equal."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One ranking's values against another's, query by query. `p` is corrected where several tests are made."""

    mean: float
    p: float
    wins: int
    ties: int
    losses: int

    @classmethod
    def of(cls, values: Sequence[float], baseline: Sequence[float]) -> Difference:
        apart = np.subtract(values, baseline)
        wins, losses = int((apart > EQUAL).sum()), int((apart < -EQUAL).sum())
        mean = float(apart.mean()) if len(apart) else 0.0
        return cls(mean, randomisation_test(apart.tolist()), wins, len(apart) - wins - losses, losses)


def randomisation_test(differences: Sequence[float]) -> float:
    """The two-sided p of Fisher's paired randomisation test: how often signs by chance give as large a mean.

    Smucker, Allan and Carterette (CIKM 2007) recommend it for measures of rankings. Few queries have all signs tried;
    of more SAMPLES are drawn, the same ones each time.
    """
    apart: Any = np.asarray(differences, dtype=np.float64)
    apart = apart[np.abs(apart) > EQUAL]
    count = len(apart)
    if not count:
        return 1.0
    bound = abs(apart.sum()) - EQUAL
    if count <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ apart) >= bound).mean())
    random = np.random.default_rng(0)
    extreme = 0
    for _ in range(SAMPLES // SAMPLES_AT_ONCE):
        drawn = random.integers(0, 2, (SAMPLES_AT_ONCE, count), dtype=np.int8) * 2.0 - 1
        extreme += int((np.abs(drawn @ apart) >= bound).sum())
    return (extreme + 1) / (SAMPLES + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for how many there are (Holm 1979), in their order."""
    corrected = [0.0] * len(values)
    before = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        before = max(before, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = before
    return corrected
