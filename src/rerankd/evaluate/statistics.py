"""Whether a difference between two rankings is significant: a paired randomisation test, with a correction for
several tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EXACT_UP_TO = 16
"""Most queries for which all assignments of signs are tried; beyond them, signs are sampled."""
SAMPLES = 100_000
SAMPLES_AT_ONCE = 10_000
"""Samples that are computed together, which bounds the memory."""
EQUAL = 1e-9
"""Two values of a measure count as equal if they differ by less than this."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How the values of a ranking differ from those of the baseline, over queries.

    mean: the mean difference
    p: the p value of the randomisation test, before or after a correction for several tests
    wins, ties, losses: number of queries with a higher, an equal and a lower value
    """

    mean: float
    p: float
    wins: int
    ties: int
    losses: int

    @classmethod
    def of(cls, values: Sequence[float], baseline: Sequence[float]) -> Difference:
        """The difference between two sequences with the values of the same queries; `p` is not corrected."""
        differences = np.subtract(values, baseline)
        wins, losses = int((differences > EQUAL).sum()), int((differences < -EQUAL).sum())
        mean = float(differences.mean()) if len(differences) else 0.0
        return cls(mean, randomisation_test(differences.tolist()), wins, len(differences) - wins - losses, losses)


def randomisation_test(differences: Sequence[float]) -> float:
    """The two-sided p value of Fisher's paired randomisation test.

    This is the share of random assignments of signs to the differences whose mean is at least as far from 0 as the
    observed mean. Up to EXACT_UP_TO queries, all assignments are tried; beyond, SAMPLES are drawn with a fixed seed.
    Source: Smucker, Allan and Carterette (CIKM 2007), who recommend the test for comparing rankings.
    """
    nonzero: Any = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[np.abs(nonzero) > EQUAL]
    count = len(nonzero)
    if not count:
        return 1.0
    bound = abs(nonzero.sum()) - EQUAL
    if count <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(1 << count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ nonzero) >= bound).mean())
    random = np.random.default_rng(0)
    extreme = 0
    for _ in range(SAMPLES // SAMPLES_AT_ONCE):
        sampled = random.integers(0, 2, (SAMPLES_AT_ONCE, count), dtype=np.int8) * 2.0 - 1
        extreme += int((np.abs(sampled @ nonzero) >= bound).sum())
    return (extreme + 1) / (SAMPLES + 1)


def holm(values: Sequence[float]) -> list[float]:
    """The p values in their order, corrected for the number of tests (Holm, 1979)."""
    corrected = [0.0] * len(values)
    previous = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        previous = max(previous, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = previous
    return corrected
