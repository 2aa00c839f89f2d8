"""Normalisation over the last dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.native import Kernels
from rerankd.layers.rotary import Rotation, rotate
from rerankd.layers.rows import Rows, plain
from rerankd.layers.runtime import Runtime


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019); the mean is taken in float32.

    kernels: for weights and rows in bfloat16 on a CPU, or None for torch's own functions
    """

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels | None = None) -> None:
        self.weight = weight
        self.eps = eps
        self.kernels = kernels if kernels is not None and kernels.fit(len(weight)) else None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, width], of any dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def rows(self, x: Rows) -> Rows:
        """The same, for maps to read."""
        return self(plain(x)) if self.kernels is None else self.kernels.rms_norm(x, self.weight, self.eps)

    def rotated(self, x: Rows, rotation: Rotation, out: Rows) -> None:
        """Each head of x [rows, heads * width] normed and turned by `rotation`, into `out` like it, or x itself."""
        width = len(self.weight)
        if self.kernels is not None and self.kernels.fit(width // 2):
            self.kernels.norm_rotate(x, self.weight, self.eps, rotation, out)
            return
        normed = self(plain(x).view(len(x), x.shape[1] // width, width))
        turned = torch.empty_like(normed)
        rotate(normed, rotation, out=turned)
        out.copy_(turned.flatten(1))


@dataclass(frozen=True, slots=True)
class States:
    """Rows between an encoder's layers: as they are, float32 [rows, width], and rounded to what products read.

    In a float32 model both are one tensor.
    """

    exact: Tensor
    rounded: Rows

    @classmethod
    def empty(cls, rows: int, width: int, runtime: Runtime) -> States:
        exact = torch.empty(rows, width, device=runtime.device)
        if runtime.dtype == torch.float32:
            return cls(exact, exact)
        if runtime.kernels is not None:
            return cls(exact, runtime.kernels.empty_rows(rows, width))
        return cls(exact, torch.empty(rows, width, dtype=runtime.dtype, device=runtime.device))

    def __len__(self) -> int:
        return len(self.exact)

    def part(self, rows: slice) -> States:
        """Some of the rows, as a view."""
        exact = self.exact[rows]
        return States(exact, exact if self.rounded is self.exact else self.rounded[rows])

    def chosen(self, rows: Tensor, runtime: Runtime) -> States:
        """The rows whose numbers `rows` (int64) has, copied."""
        exact = plain(runtime.chosen(self.exact, rows))
        return States(exact, exact if self.rounded is self.exact else runtime.chosen(self.rounded, rows))


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al., 2016)."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, kernels: Kernels | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self.kernels = kernels if kernels is not None and kernels.fit(len(weight)) else None

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, delta: Rows, out: States) -> None:
        """The norm of x + delta, for weights and x in float32 and delta in the model's dtype, into `out`."""
        if self.kernels is not None:
            self.kernels.add_layer_norm(x, delta, self.weight, self.bias, self.eps, out.exact, out.rounded)
        else:
            normed = self(x + plain(delta))
            out.exact.copy_(normed)
            if out.rounded is not out.exact:
                out.rounded.copy_(normed)
