"""Norms over the last dimension, fused by kernels with the residual before them or the rotary embedding behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.rows import Rows, to_dense
from rerankd.backends.cpu.runtime import Runtime
from rerankd.layers.rotary import Rotation, rotate


class RowNorm(Protocol):
    """The norm before the linear layers of a "pre" layer."""

    @property
    def kernels(self) -> Kernels | None:
        """The kernels that compute the norm, or None where torch does."""
        ...

    @property
    def weights(self) -> Sequence[Tensor | None]:
        """See `LayerPart`."""
        ...

    def rows(self, x: Rows) -> Rows:
        """The norm of x [rows, width], for linear layers to read."""
        ...


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019); the mean is taken in float32.

    kernels: for weights and rows in the model's dtype, or None for torch's own functions
    """

    def __init__(self, weight: Tensor, eps: float, kernels: Kernels | None = None) -> None:
        self.weight = weight
        self.eps = eps
        self.kernels = kernels if kernels is not None and kernels.fit(len(weight)) else None
        self.weights = (weight,)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., width], of any dtype."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def rows(self, x: Rows) -> Rows:
        """See `RowNorm.rows`."""
        return self(to_dense(x)) if self.kernels is None else self.kernels.rms_norm(x, self.weight, self.eps)


class PlainLayerNorm:
    """LayerNorm (Ba et al., 2016) of rows in the model's dtype, by torch."""

    kernels = None
    weights: Sequence[Tensor | None] = ()

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def rows(self, x: Rows) -> Rows:
        """See `RowNorm.rows`."""
        return F.layer_norm(to_dense(x), self.weight.shape, self.weight, self.bias, self.eps)


class NoNorm:
    """The identity, for a layer without a norm."""

    kernels = None
    weights: Sequence[Tensor | None] = ()

    def rows(self, x: Rows) -> Rows:
        """x itself."""
        return x


class NormRope:
    """The norm and the rotary embedding of queries or keys, in one pass by the kernels.

    norm: over the values of one head, a part with weights of its own; None for none
    rotary: whether heads are rotated
    """

    weights: Sequence[Tensor | None] = ()

    def __init__(self, head_dim: int, norm: RMSNorm | None, rotary: bool) -> None:
        self.head_dim = head_dim
        self.norm = norm
        self.rotary = rotary
        kernels = None if norm is None else norm.kernels
        self.kernels = kernels if kernels is not None and rotary and kernels.fit(head_dim // 2) else None

    def project(self, linear: Linear, x: Rows, rotation: Rotation | None, out: Rows) -> None:
        """`linear` of x [rows, in], then norm and rotation, into `out` [rows, heads * head_dim]."""
        if self.kernels is not None or (self.norm is None and rotation is None):
            linear(x, out=out)
            self(out, rotation, out)
        else:
            self(linear(x), rotation, out)

    def __call__(self, x: Rows, rotation: Rotation | None, out: Rows) -> None:
        """Norm and rotation of each head of x [rows, heads * head_dim], into `out` of the same shape, or x itself."""
        if self.kernels is not None and self.norm is not None and rotation is not None:
            self.kernels.norm_rope(x, self.norm.weight, self.norm.eps, rotation, out)
            return
        if self.norm is None and rotation is None:
            if out is not x:
                out.copy_(to_dense(x))
            return
        heads = to_dense(x).view(len(x), -1, self.head_dim)
        if self.norm is not None:
            heads = self.norm(heads)
        if rotation is not None:
            rotated = torch.empty_like(heads, memory_format=torch.contiguous_format)
            rotate(heads, rotation, out=rotated)
            heads = rotated
        out.copy_(heads.flatten(1))


@dataclass(frozen=True, slots=True)
class States:
    """Rows between the layers of a "post" model, twice. In a float32 model both are one object.

    float32: the rows, [rows, width], which residuals and norms read
    rounded: the rows in the model's dtype, which GEMMs read
    """

    float32: Rows
    rounded: Rows

    @classmethod
    def empty(cls, rows: int, width: int, runtime: Runtime) -> States:
        """States without values."""
        rounded = runtime.empty_rows(rows, width)
        return cls(rounded if runtime.dtype == torch.float32 else torch.empty(rows, width), rounded)

    @classmethod
    def of(cls, x: Tensor, runtime: Runtime) -> States:
        """The states with the values of x, float32 [rows, width]."""
        states = cls.empty(len(x), x.shape[1], runtime)
        states.float32.copy_(x)
        if states.rounded is not states.float32:
            states.rounded.copy_(x)
        return states

    def __len__(self) -> int:
        return len(self.float32)

    def part(self, rows: slice) -> States:
        """Some of the rows, as a view."""
        float32 = self.float32[rows]
        return States(float32, float32 if self.rounded is self.float32 else self.rounded[rows])

    def index_select(self, rows: Tensor, runtime: Runtime) -> States:
        """A copy of the rows with indices `rows` (int64)."""
        float32 = runtime.index_select(self.float32, rows)
        return States(float32, float32 if self.rounded is self.float32 else runtime.index_select(self.rounded, rows))


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al., 2016) of states, by float32 weights."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float, kernels: Kernels | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self.kernels = kernels if kernels is not None and kernels.fit(len(weight)) else None
        self.weights = (weight, bias)

    def add_norm(self, x: Rows, delta: Rows, out: States) -> None:
        """The norm of x + delta into `out`. x: float32 [rows, width]; delta: the same in the model's dtype"""
        if self.kernels is not None:
            self.kernels.add_layer_norm(x, delta, self.weight, self.bias, self.eps, out.float32, out.rounded)
            return
        normed = F.layer_norm(to_dense(x) + to_dense(delta), self.weight.shape, self.weight, self.bias, self.eps)
        out.float32.copy_(normed)
        if out.rounded is not out.float32:
            out.rounded.copy_(normed)
