"""Rotary embeddings as configurations describe them: a base, and how it is scaled for longer texts.

Behaviour reference of the scalings: `modeling_rope_utils.py` in transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rerankd.layers.rotary import Rotary, geometric


@dataclass(frozen=True, slots=True)
class Linear:
    """Positions divided by `factor` (Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3:
    """Long wavelengths divided by `factor`, short ones left, those between interpolated (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN (Peng et al., 2023): high frequencies stay, low ones are divided by `factor`, with a ramp between them.

    attention_factor: the factor of cosines and sines; None for the factor of the paper
    mscale: `mscale` and `mscale_all_dim`, from which DeepSeek derives that factor
    beta_fast, beta_slow: the numbers of rotations in `original_positions` positions at both ends of the ramp
    truncate: whether the ramp begins and ends at whole dimensions
    """

    factor: float
    original_positions: int
    attention_factor: float | None = None
    mscale: tuple[float, float] | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class Ntk:
    """The base times `factor`, and frequencies divided by factor^(2 / width) (kexue.fm/archives/9706).

    Behaviour reference: `NTKScalingRotaryEmbedding` of mGTE's authors.
    """

    factor: float


Scaling: TypeAlias = Linear | Llama3 | Yarn | Ntk


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding: theta^(-2i/head_dim) for each pair i of a head, scaled or not."""

    theta: float
    scaling: Scaling | None = None

    def rotary(self, width: int, axes: tuple[int, ...] = ()) -> Rotary:
        """The rotation of `width` values of each head; see `Rotary` for `axes`."""
        frequencies: list[float] = self.frequencies(width).tolist()
        return Rotary(tuple(frequencies), axes, self.attention_factor)

    def frequencies(self, width: int) -> Tensor:
        """Radians a position of each pair, float32 [width / 2]."""
        plain = torch.tensor(geometric(width, self.theta))
        match self.scaling:
            case None:
                return plain
            case Linear(factor):
                return plain / factor
            case Llama3() as scaling:
                return _llama3(plain, scaling)
            case Yarn() as scaling:
                return _yarn(plain, scaling, self.theta)
            case Ntk(factor):
                divisor: float = factor ** (2 / width)
                return torch.tensor(geometric(width, self.theta * factor)) / divisor

    @property
    def attention_factor(self) -> float:
        """The factor of cosines and sines."""
        if not isinstance(self.scaling, Yarn):
            return 1.0
        yarn = self.scaling
        if yarn.attention_factor is not None:
            return yarn.attention_factor
        if yarn.mscale is not None:
            mscale, all_dims = yarn.mscale
            return _mscale(yarn.factor, mscale) / _mscale(yarn.factor, all_dims)
        return _mscale(yarn.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(plain: Tensor, scaling: Llama3) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    rotations = scaling.original_positions * plain / (2 * math.pi)
    share = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / scaling.factor + share * plain


def _yarn(plain: Tensor, scaling: Yarn, theta: float) -> Tensor:
    pairs = len(plain)

    def pair_of(rotations: float) -> float:
        """The pair (fractional, from 0) that makes `rotations` rotations in the original positions."""
        return pairs * math.log(scaling.original_positions / (rotations * 2 * math.pi)) / math.log(theta)

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first or 0.001
    ramp = ((torch.arange(pairs, dtype=torch.float32, device=plain.device) - first) / width).clamp(0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)
