"""Rotary position embedding (Su et al., 2021), in the half-split form: values i and i + half of a head are a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """The angles of packed rows: cosines and sines [rows, 1, pairs]."""

    cos: Tensor
    sin: Tensor

    def rows(self, rows: slice | Tensor) -> Rotation:
        """The angles of some rows."""
        return Rotation(self.cos[rows], self.sin[rows])


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotation of the first 2 * pairs values of each head by position.

    frequencies: the angle of each pair at position 1
    axes: for positions with several coordinates, the coordinate that rotates each pair; empty for plain positions
    factor: the factor of cosines and sines (the attention factor of YaRN; Peng et al., 2023)
    """

    frequencies: tuple[float, ...]
    axes: tuple[int, ...] = ()
    factor: float = 1.0

    @classmethod
    def plain(cls, width: int, theta: float, axes: tuple[int, ...] = ()) -> Rotary:
        """theta ** (-2i / width) for each pair i of `width` values."""
        return cls(geometric(width, theta), axes)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation, in `dtype`, of int64 positions [rows], or [coordinates, rows]; angles are float32."""
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=positions.device)
        if self.axes:
            by_pair = positions.float()[torch.tensor(self.axes, device=positions.device)].T.contiguous()
        else:
            by_pair = positions.float()[:, None]
        angles = (by_pair * frequencies)[:, None]
        return Rotation((angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype))


def geometric(width: int, theta: float) -> tuple[float, ...]:
    """theta ** (-2i / width), i from 0 to width / 2, in float32 as the references compute it."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies: list[float] = (1.0 / theta**exponents).tolist()
    return tuple(frequencies)


def rotate(x: Tensor, rotation: Rotation, out: Tensor) -> None:
    """Write x [rows, heads, head_dim], rotated by `rotation`, into `out` of the same shape.

    Values beyond the pairs of `rotation` are copied.
    """
    half = rotation.cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, rotation.cos, out=out[..., :half]).addcmul_(second, rotation.sin, value=-1)
    torch.mul(second, rotation.cos, out=out[..., half : 2 * half]).addcmul_(first, rotation.sin)
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
