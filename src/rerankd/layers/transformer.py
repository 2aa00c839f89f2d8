"""The protocol between models and backends: functions of packed rows, made of specifications and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from rerankd.layers.layout import AttentionLayout
from rerankd.layers.spec import Activation, Affine, TransformerSpec, TransformerWeights

Projection: TypeAlias = Callable[[Tensor], Tensor]
"""A function [rows, in] -> [rows, out], in the executor's dtype."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Packed tokens: int64 [T] each. Without `types` all tokens are of type 0."""

    ids: Tensor
    positions: Tensor
    types: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Additions:
    """Features added to some rows after each of the first layers (deepstack; Meng et al., 2024).

    rows: int64 [n]; features: [n, hidden] for each layer
    """

    rows: Tensor
    features: Sequence[Tensor]


class Transformer(Protocol):
    """A loaded stack of layers. It holds no state between calls."""

    def embed(self, tokens: Tokens) -> Tensor:
        """The first layer's input: [T, hidden] in the executor's dtype. Raises IndexError if a table lacks a row."""
        ...

    def __call__(
        self,
        x: Tokens | Tensor,
        layout: AttentionLayout,
        positions: Tensor | None = None,
        keep: Sequence[int] | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """The last states, after the final norm: float32 [T, hidden], or [len(keep), hidden].

        x: tokens, or the first layer's input [T, hidden], which the call may overwrite
        positions: for rotary angles, int64 [T] or [coordinates, T]; None for a specification without rotation
        keep: the rows whose last states to return, ascending; the last layer computes no other rows. None for all rows
        additions: features for the first layers, at most for all layers but the last
        """
        ...


class Executor(Protocol):
    """Where the transformers of one model run, and in which dtype."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def transformer(self, spec: TransformerSpec, weights: TransformerWeights) -> Transformer:
        """The layers, with prepared weights. Raises ModelError for a specification that is not supported."""
        ...

    def projection(self, weights: Affine, activation: Activation | None = None) -> Projection:
        """A linear layer outside of a transformer (patch embedding, merger), followed by the activation."""
        ...
