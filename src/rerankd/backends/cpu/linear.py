"""Linear layers, y = x W^T + b, with a fused epilogue where the kernel has one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cpu.native import Kernels, PackedWeight, QuantizedRows
from rerankd.backends.cpu.rows import BlockedTensor, Rows, to_dense
from rerankd.backends.torch.transformer import activate
from rerankd.layers.spec import Activation

QUANTIZED_AT_ONCE = 256
"""Rows of a weight that are quantised at a time."""


class Linear(Protocol):
    """A linear layer from `[rows, in_features]` to `[rows, out_features]`, in the model's dtype.

    out: the rows to write the result to; None for a new tensor
    """

    @property
    def kernels(self) -> Kernels | None:
        """The kernels that compute the layer, or None where torch does."""
        ...

    @property
    def weights(self) -> Sequence[Tensor | None]:
        """See `LayerPart`."""
        ...

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        """x W^T + b."""
        ...

    def with_activation(self, x: Rows, activation: Activation) -> Rows:
        """activation(x W^T + b), for a linear layer to read."""
        ...

    def with_gate(self, x: Rows) -> Rows:
        """silu(a) * b for the halves a and b of x W^T + b (SwiGLU; Shazeer, 2020), for a linear layer to read."""
        ...

    def with_residual(self, x: Rows, residual: Rows, out: Rows | None = None) -> Rows:
        """x W^T + b + residual, for a residual of the shape of the output."""
        ...


class UnfusedLinear(ABC):
    """A linear layer by torch, whose epilogue is a pass of its own."""

    kernels = None
    weights: Sequence[Tensor | None] = ()

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """x W^T + b."""

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        return written(self.project(to_dense(x)), out)

    def with_activation(self, x: Rows, activation: Activation) -> Tensor:
        return activate(self.project(to_dense(x)), activation)

    def with_gate(self, x: Rows) -> Tensor:
        return gate(self.project(to_dense(x)))

    def with_residual(self, x: Rows, residual: Rows, out: Rows | None = None) -> Rows:
        return written(self.project(to_dense(x)).add_(to_dense(residual)), out)


class DenseLinear(UnfusedLinear):
    """A linear layer by torch, with an unpacked weight `[out_features, in_features]`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """A linear layer in bfloat16 by oneDNN, with a weight that oneDNN packs once.

    The epilogue is computed on the float32 sums, before they are rounded.
    """

    kernels = None
    weights: Sequence[Tensor | None] = ()

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = bias

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        return written(self._fused(x, "none", ""), out)

    def with_activation(self, x: Rows, activation: Activation) -> Tensor:
        if activation not in _ONEDNN:
            return activate(self._fused(x, "none", ""), activation)
        return self._fused(x, *_ONEDNN[activation])

    def with_gate(self, x: Rows) -> Tensor:
        return gate(self._fused(x, "none", ""))

    def with_residual(self, x: Rows, residual: Rows, out: Rows | None = None) -> Rows:
        total = torch.ops.mkldnn._linear_pointwise.binary(
            to_dense(x), to_dense(residual), self.weight, self.bias, "add"
        )
        return written(total, out)

    def _fused(self, x: Rows, name: str, algorithm: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(to_dense(x), self.weight, self.bias, name, [], algorithm)
        return y


class KernelLinear:
    """A linear layer by the kernels' GEMM, in the dtype of their rows, in 8 bits or in 16 bits.

    The epilogue is computed on the sums, before they are rounded.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        prepare: Callable[[Rows], BlockedTensor | QuantizedRows],
        kernels: Kernels,
    ) -> None:
        """prepare: the layout and precision of rows that the GEMM reads"""
        self.weight = weight
        self.bias = None if bias is None else bias.float()
        self.kernels = kernels
        self.outputs = len(weight.packed)
        self.weights = (*weight, self.bias)
        self._prepare = prepare

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        return self._gemm(x, self._empty(x) if out is None else out)

    def with_activation(self, x: Rows, activation: Activation) -> Rows:
        return self._gemm(x, self.kernels.empty_rows(len(x), self.outputs), activation)

    def with_gate(self, x: Rows) -> Rows:
        return self._gemm(x, self.kernels.empty_rows(len(x), self.outputs // 2), "gated")

    def with_residual(self, x: Rows, residual: Rows, out: Rows | None = None) -> Rows:
        return self._gemm(x, self._empty(x) if out is None else out, "residual", residual)

    def _empty(self, x: Rows) -> Tensor:
        return torch.empty(len(x), self.outputs, dtype=self.kernels.dtype)

    def _gemm(self, x: Rows, out: Rows, epilogue: str | None = None, residual: Rows | None = None) -> Rows:
        self.kernels.gemm(self._prepare(x), self.weight, self.bias, out, epilogue, residual)
        return out


def kernel_linear(
    weight: Tensor, bias: Tensor | None, kernels: Kernels | None, otherwise: Callable[[Tensor, Tensor | None], Linear]
) -> Linear:
    """A linear layer by the kernels where its shape fits them, else one that `otherwise` makes."""
    if kernels is not None and kernels.fit_gemm(*weight.shape):
        return KernelLinear(kernels.pack(weight.contiguous()), bias, kernels.to_blocked, kernels)
    return otherwise(weight, bias)


def int8_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None) -> Linear:
    """A linear layer in 8-bit integers (W8A8), by the kernels where its shape fits them, else by oneDNN.

    Each output channel of the weight is scaled to its largest magnitude when the model is loaded, and each row of the
    input to its own range when the layer runs. So an outlier in a row costs no other row precision, and an asymmetric
    range wastes none. Sums are exact in int32. Kernels without VNNI add four products in 16 bits first, and a channel's
    scale lets them fit (`Kernels.largest_sum`).
    """
    if kernels is None or not kernels.fit_gemm(*weight.shape):
        return Int8Linear(*int8_weight(weight, 127, 0), bias)
    rounded = int8_weight(weight, kernels.largest_weight, kernels.largest_sum)
    return KernelLinear(kernels.pack_int8(*rounded), bias, kernels.quantize, kernels)


def int16_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels) -> Linear:
    """A linear layer in 16-bit integers, by kernels that have them; its shape fits `Kernels.fit_gemm`.

    Each row is scaled to its largest magnitude. Each output channel of the weight is scaled so that int32 holds its
    sums with any row: that leaves 13 bits for 384 inputs, and 10 for 4,096. The error is about 0.1 % of an output's
    usual size.
    """
    # Rounding adds up to half a step to each magnitude.
    most = (2**31 - 1) // kernels.largest_half - weight.shape[1] / 2
    codes, scales = _rounded(
        weight, torch.int16, lambda wide: torch.maximum(wide.abs().amax(1) / 32767, wide.abs().sum(1) / most)
    )
    return KernelLinear(kernels.pack_int16(codes, scales), bias, partial(kernels.quantize, halves=True), kernels)


def int8_weight(weight: Tensor, largest_weight: int, largest_sum: int) -> tuple[Tensor, Tensor]:
    """A weight [outputs, inputs] in int8, and the float32 scales of its outputs.

    largest_weight, largest_sum: see `Kernels`
    """

    def scales(wide: Tensor) -> Tensor:
        by_magnitude = wide.abs().amax(1) / largest_weight
        if not largest_sum:
            return by_magnitude
        # Rounding adds up to half a step to each of four weights.
        return torch.maximum(by_magnitude, _sums_of_four(wide) / (largest_sum - 2))

    return _rounded(weight, torch.int8, scales)


def _rounded(weight: Tensor, dtype: torch.dtype, scales_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A weight [outputs, inputs] in integers of `dtype`, and the float32 scales of its outputs.

    scales_of: the scales of some rows of the weight, given in float32
    """
    scales = torch.empty(len(weight))
    rounded = torch.empty(weight.shape, dtype=dtype)
    # Some rows at a time, so that loading in 8 bits takes no more memory than loading in 16.
    for start in range(0, len(weight), QUANTIZED_AT_ONCE):
        part = slice(start, start + QUANTIZED_AT_ONCE)
        wide = weight[part].float()
        torch.clamp(scales_of(wide), min=torch.finfo(torch.float32).tiny, out=scales[part])
        rounded[part] = (wide / scales[part, None]).round_()
    return rounded, scales


def _sums_of_four(weight: Tensor) -> Tensor:
    """Of each row of a weight [outputs, inputs], the largest sum of what its positive values, or its negative ones, add
    up to at four inputs whose products are added in 16 bits; see `Kernels.largest_sum`."""
    fours = weight.view(len(weight), -1, 2, 2, 2)
    return torch.maximum(*(signed.clamp_min(0).sum((2, 4)).flatten(1).amax(1) for signed in (fours, -fours)))


class Int8Linear(UnfusedLinear):
    """A linear layer in 8 bits by oneDNN's GEMM of uint8 rows and an int8 weight, in any dtype."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scales = scales
        self.sums = weight.sum(1) * scales
        self.zero_points = torch.zeros(len(scales), dtype=torch.int64)
        self.bias = bias

    def project(self, x: Tensor) -> Tensor:
        low, high = (bound.float() for bound in x.aminmax(dim=-1, keepdim=True))
        low, high = low.clamp_max_(0), high.clamp_min_(0)
        steps = ((high - low) / 255).clamp_min_(torch.finfo(torch.float32).tiny * 256)
        zeros = (-low / steps).round_()
        codes = (x / steps).round_().add_(zeros).clamp_(0, 255).to(torch.uint8)
        # oneDNN takes one scale and one zero for all rows: it gets 1 and 0, and those of each row are applied below.
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, self.weight, self.scales, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y.addcmul_(zeros, self.sums, value=-1).mul_(steps)
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype)


def written(y: Tensor, out: Rows | None) -> Rows:
    """y, or `out` with the values of y."""
    if out is None:
        return y
    out.copy_(y)
    return out


def gate(y: Tensor) -> Tensor:
    """silu(a) * b for the halves a and b of the columns of y."""
    a, b = y.chunk(2, dim=-1)
    return F.silu(a).mul_(b)


_ONEDNN = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
