"""Normalisation over the last dimension, fused with what stands beside the norm where kernels compute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.rows import Rows, plain
from rerankd.backends.cpu.runtime import Runtime
from rerankd.layers.rotary import Rotation, rotate


class RowNorm(Protocol):
    """The norm before the linear layers of a "pre" layer."""

    @property
    def kernels(self) -> Kernels | None:
        """The kernels that compute it, or None where torch does."""
        ...

    def rows(self, x: Rows) -> Rows:
        """x [rows, width] normed, for linear layers to read."""
        ...


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019); the mean is taken in float32.

    kernels: for weights and rows in bfloat16, or None for torch's own functions
    """

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels | None = None) -> None:
        self.weight = weight
        self.eps = eps
        self.kernels = kernels if kernels is not None and kernels.fit(len(weight)) else None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., width], of any dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def rows(self, x: Rows) -> Rows:
        """See `RowNorm.rows`."""
        return self(plain(x)) if self.kernels is None else self.kernels.rms_norm(x, self.weight, self.eps)


class PlainLayerNorm:
    """LayerNorm (Ba et al., 2016) of rows in the model's dtype, by torch."""

    kernels = None

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def rows(self, x: Rows) -> Rows:
        """See `RowNorm.rows`."""
        return F.layer_norm(plain(x), self.weight.shape, self.weight, self.bias, self.eps)


class NoNorm:
    """What stands where a layer has no norm."""

    kernels = None

    def rows(self, x: Rows) -> Rows:
        """x itself."""
        return x


class HeadTurn:
    """What queries and keys go through: a norm of each head, if there is one, then the rotation, if there is one.

    norm: over the values of one head, or None
    """

    def __init__(self, head_dim: int, norm: RMSNorm | None, turns: bool) -> None:
        self.head_dim = head_dim
        self.norm = norm
        self.turns = turns
        kernels = None if norm is None else norm.kernels
        self.kernels = kernels if kernels is not None and turns and kernels.fit(head_dim // 2) else None

    def project(self, linear: Linear, x: Rows, rotation: Rotation | None, out: Rows) -> None:
        """`linear` of x [rows, in], then the norm and the rotation, into `out` [rows, heads * head_dim]."""
        if self.kernels is not None or (self.norm is None and rotation is None):
            linear(x, out=out)
            self(out, rotation, out)
        else:
            self(linear(x), rotation, out)

    def __call__(self, x: Rows, rotation: Rotation | None, out: Rows) -> None:
        """Each head of x [rows, heads * head_dim] normed and turned, into `out` like it, or x itself."""
        if self.kernels is not None and self.norm is not None and rotation is not None:
            self.kernels.norm_rotate(x, self.norm.weight, self.norm.eps, rotation, out)
            return
        if self.norm is None and rotation is None:
            if out is not x:
                out.copy_(plain(x))
            return
        heads = plain(x).view(len(x), -1, self.head_dim)
        if self.norm is not None:
            heads = self.norm(heads)
        if rotation is not None:
            turned = torch.empty_like(heads, memory_format=torch.contiguous_format)
            rotate(heads, rotation, out=turned)
            heads = turned
        out.copy_(heads.flatten(1))


@dataclass(frozen=True, slots=True)
class States:
    """Rows between the layers of a "post" model: as they are, float32 [rows, width], and rounded to what GEMMs read.

    In a float32 model both are one tensor.
    """

    exact: Tensor
    rounded: Rows

    @classmethod
    def empty(cls, rows: int, width: int, runtime: Runtime) -> States:
        """States with no values yet."""
        exact = torch.empty(rows, width)
        if runtime.dtype == torch.float32:
            return cls(exact, exact)
        if runtime.kernels is not None:
            return cls(exact, runtime.kernels.empty_rows(rows, width))
        return cls(exact, torch.empty(rows, width, dtype=runtime.dtype))

    @classmethod
    def of(cls, x: Tensor, runtime: Runtime) -> States:
        """The states with the values of x, float32 [rows, width]."""
        states = cls.empty(len(x), x.shape[1], runtime)
        states.exact.copy_(x)
        if states.rounded is not states.exact:
            states.rounded.copy_(x)
        return states

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
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al., 2016) of states, by float32 weights."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, kernels: Kernels | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self.kernels = kernels if kernels is not None and kernels.fit(len(weight)) else None

    def of_sum(self, x: Tensor, delta: Rows, out: States) -> None:
        """The norm of x + delta, for x in float32 and delta in the model's dtype, into `out`."""
        if self.kernels is not None:
            self.kernels.add_layer_norm(x, delta, self.weight, self.bias, self.eps, out.exact, out.rounded)
            return
        normed = F.layer_norm(x + plain(delta), self.weight.shape, self.weight, self.bias, self.eps)
        out.exact.copy_(normed)
        if out.rounded is not out.exact:
            out.rounded.copy_(normed)
