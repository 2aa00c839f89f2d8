"""Rotary position embedding (Su et al., 2021), in the half-split form that the Qwen family uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """The angles of packed rows: cosines and sines [rows, 1, head_dim / 2], in the model's dtype."""

    cos: Tensor
    sin: Tensor

    def rows(self, rows: slice | Tensor) -> Rotation:
        return Rotation(self.cos[rows], self.sin[rows])


class Rotary:
    """theta^(-2i/head_dim) for each pair i, turned by a row's position."""

    def __init__(self, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        self.frequencies = 1.0 / theta**exponents
        self.dtype = dtype

    def __call__(self, positions: Tensor) -> Rotation:
        """The rotation for int64 positions [rows]; angles are computed in float32."""
        angles = torch.outer(positions.float(), self.frequencies)[:, None]
        return Rotation(angles.cos().to(self.dtype), angles.sin().to(self.dtype))


def rotate(x: Tensor, rotation: Rotation, out: Tensor) -> None:
    """Write x [rows, heads, head_dim] turned by `rotation` into `out` of the same shape."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, rotation.cos, out=out[..., :half]).addcmul_(second, rotation.sin, value=-1)
    torch.mul(second, rotation.cos, out=out[..., half:]).addcmul_(first, rotation.sin)
