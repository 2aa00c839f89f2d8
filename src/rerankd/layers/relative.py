"""Attention with tables of the distance between rows.

Disentangled attention (He et al., 2021), and biases of buckets (Raffel et al., 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Disentangled:
    """The row of the tables for a distance between two positions.

    A distance d reads row `span + d`. With `farthest`, distances beyond half the span share rows, on a logarithmic
    scale. A distance beyond the table reads its first or last row.

    Behaviour reference: `modeling_deberta_v2.py` in transformers.

    span: half of the tables' rows
    farthest: the distance at which the logarithmic scale ends; None for one row for each distance
    """

    span: int
    farthest: int | None = None

    def rows(self, distances: Tensor) -> Tensor:
        """The rows, int64, of int64 distances (position of the query minus position of the key)."""
        offsets = distances if self.farthest is None else self._on_scale(distances, self.farthest)
        return (offsets + self.span).clamp(0, 2 * self.span - 1)

    def _on_scale(self, distances: Tensor, farthest: int) -> Tensor:
        near = self.span // 2
        far = distances.abs().clamp(min=near).float()
        # In float32, as the reference: at a rounding's edge the next integer would be another row.
        logarithm = torch.log(far / near) / torch.tensor((farthest - 1) / near).log()
        steps = torch.ceil(logarithm * (near - 1)) + near
        return torch.where(distances.abs() <= near, distances, (steps * distances.sign()).long())

    def logits_scale(self, head_dim: int, tables: int) -> float:
        """The factor of logits that are sums of 1 + `tables` dot products."""
        return 1 / math.sqrt(head_dim * (1 + tables))


@dataclass(frozen=True, slots=True)
class Buckets:
    """The row of a table of biases for a distance between two positions, in a bidirectional layer.

    Half of the rows are for keys before the query, and half for keys behind it. In each half, small distances have a
    row each; larger distances share rows on a logarithmic scale.

    Behaviour reference: `modeling_mpnet.py` and `modeling_t5.py` in transformers.

    count: rows of the table
    farthest: the distance from which all read the last row
    """

    count: int
    farthest: int = 128

    def rows(self, distances: Tensor) -> Tensor:
        """The rows, int64, of int64 distances (position of the query minus position of the key)."""
        half = self.count // 2
        near = half // 2
        far = distances.abs()
        # In float32, as the reference: at a rounding's edge the next integer would be another row.
        scale = torch.log(far.clamp(min=1).float() / near) / math.log(self.farthest / near) * (half - near)
        beyond = (near + scale.long()).clamp(max=half - 1)
        return torch.where(far < near, far, beyond) + half * (distances < 0)
