"""From neighbouring patches of pixels to a token of a language model."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.spec import Affine
from rerankd.layers.transformer import Executor
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.vision_shape import NORM


class MergerNames(NamedTuple):
    """Names of a merger's norm and of its linear layers."""

    norm: str = "norm"
    up: str = "linear_fc1"
    down: str = "linear_fc2"


class PatchMerger:
    """Joins neighbouring patches, and makes a token of them by two linear layers with a GELU between.

    The states of patches that merge follow one another.
    """

    def __init__(
        self,
        weights: Weights,
        executor: Executor,
        joined: int,
        inner: int,
        out: int,
        normed: int | None = None,
        names: MergerNames = MergerNames(),  # noqa: B008 - a tuple
        epsilon: float = NORM.eps,
    ) -> None:
        """joined, inner, out: the widths of joined patches, between the linear layers, and of a token

        normed: the width of the norm: that of one patch, before it is joined to others; None for that of joined patches
        """
        self.joined, self.epsilon, width = joined, epsilon, normed or joined
        self.norm = Affine(*(weights.tensor(f"{names.norm}.{part}", width) for part in ("weight", "bias")))
        self.up = executor.projection(weights.affine(names.up, inner, joined, True), "gelu")
        self.down = executor.projection(weights.affine(names.down, out, inner, True))

    def __call__(self, x: Tensor) -> Tensor:
        """[patches, hidden] -> [tokens, out]."""
        width = len(self.norm.weight)
        normed = F.layer_norm(x.view(-1, width), (width,), *self.norm, self.epsilon)
        return self.down(self.up(normed.view(-1, self.joined)))
