"""Linear maps, y = x W^T + b, with what follows them in the same pass where the kernel allows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cpu.native import Int8Rows, Kernels, TiledWeight
from rerankd.backends.cpu.rows import Rows, StripRows, plain
from rerankd.backends.torch.transformer import activate
from rerankd.layers.spec import Activation

QUANTIZED_AT_ONCE = 256
"""Rows of a weight that are quantised together."""


class Linear(Protocol):
    """A loaded linear map from `[rows, in_features]` to `[rows, out_features]`, in the model's dtype.

    Where `out` is given, the result is written there; else to a tensor.
    """

    @property
    def kernels(self) -> Kernels | None:
        """What computes it, or None where torch does."""
        ...

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        """x W^T + b."""
        ...

    def then(self, x: Rows, activation: Activation) -> Rows:
        """An activation of x W^T + b, for a map to read."""
        ...

    def gated(self, x: Rows) -> Rows:
        """silu(a) * b, where a and b are the two halves of x W^T + b (SwiGLU; Shazeer, 2020), for a map to read."""
        ...

    def plus(self, x: Rows, addend: Rows, out: Rows | None = None) -> Rows:
        """x W^T + b + addend, for an addend of the output's shape."""
        ...


class PlainProduct(ABC):
    """What a map does with a product that torch has computed: each step a pass of its own."""

    kernels = None

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x W^T + b."""

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        return written(self.product(plain(x)), out)

    def then(self, x: Rows, activation: Activation) -> Tensor:
        return activate(self.product(plain(x)), activation)

    def gated(self, x: Rows) -> Tensor:
        return gate(self.product(plain(x)))

    def plus(self, x: Rows, addend: Rows, out: Rows | None = None) -> Rows:
        return written(self.product(plain(x)).add_(plain(addend)), out)


class DenseLinear(PlainProduct):
    """A linear map whose weight is kept as the matrix that it is: `[out_features, in_features]`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """The same in bfloat16 on a CPU, with a weight that oneDNN has laid out once for its kernels.

    What follows a product is computed on its float32 sums, before they are rounded.
    """

    kernels = None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = bias

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        return written(self._followed(x, "none", ""), out)

    def then(self, x: Rows, activation: Activation) -> Tensor:
        return self._followed(x, *_ONEDNN[activation])

    def gated(self, x: Rows) -> Tensor:
        return gate(self._followed(x, "none", ""))

    def plus(self, x: Rows, addend: Rows, out: Rows | None = None) -> Rows:
        total = torch.ops.mkldnn._linear_pointwise.binary(plain(x), plain(addend), self.weight, self.bias, "add")
        return written(total, out)

    def _followed(self, x: Rows, name: str, algorithm: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(plain(x), self.weight, self.bias, name, [], algorithm)
        return product


class TiledLinear:
    """A map on a CPU by the project's own products: of bfloat16 rows, or of 8-bit ones.

    What follows a product is computed on its sums, before they are rounded.
    """

    def __init__(
        self,
        weight: TiledWeight,
        bias: Tensor | None,
        read: Callable[[Rows], StripRows | Int8Rows],
        kernels: Kernels,
    ) -> None:
        self.weight = weight
        self.bias = None if bias is None else bias.float()
        self.kernels = kernels
        self.outputs = len(weight.tiles)
        self._read = read

    def __call__(self, x: Rows, out: Rows | None = None) -> Rows:
        return self._product(x, self._room(x) if out is None else out)

    def then(self, x: Rows, activation: Activation) -> Rows:
        return self._product(x, self.kernels.empty_rows(len(x), self.outputs), activation)

    def gated(self, x: Rows) -> Rows:
        return self._product(x, self.kernels.empty_rows(len(x), self.outputs // 2), "gated")

    def plus(self, x: Rows, addend: Rows, out: Rows | None = None) -> Rows:
        return self._product(x, self._room(x) if out is None else out, "plus", addend)

    def _room(self, x: Rows) -> Tensor:
        return torch.empty(len(x), self.outputs, dtype=torch.bfloat16)

    def _product(self, x: Rows, out: Rows, then: str | None = None, addend: Rows | None = None) -> Rows:
        self.kernels.product(self._read(x), self.weight, self.bias, out, then, addend)
        return out


def bfloat16_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None) -> Linear:
    """A linear map in bfloat16 on a CPU, by the fastest product that can take it."""
    if kernels is not None and kernels.fit_products(*weight.shape):
        return TiledLinear(kernels.pack_bf16(weight.contiguous()), bias, kernels.tile, kernels)
    return PackedLinear(weight, bias)


def int8_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None) -> Linear:
    """A linear map in 8-bit integers (W8A8), for CPUs.

    Each output channel of the weight is scaled to its largest magnitude when loaded, and each row of the input
    to its own range when used: a row with an outlier costs no other row its precision, and a lopsided one wastes
    none. Sums are exact in int32.
    """
    scales = torch.empty(len(weight))
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    # Some rows at a time: loading in 8 bits should take no more memory than loading in 16.
    for start in range(0, len(weight), QUANTIZED_AT_ONCE):
        part = slice(start, start + QUANTIZED_AT_ONCE)
        exact = weight[part].float()
        torch.clamp(exact.abs().amax(1) / 127, min=torch.finfo(torch.float32).tiny, out=scales[part])
        rounded[part] = (exact / scales[part, None]).round_()
    if kernels is not None and kernels.fit_products(*weight.shape):
        return TiledLinear(kernels.pack_int8(rounded, scales), bias, kernels.quantize, kernels)
    return Int8Linear(rounded, scales, bias)


class Int8Linear(PlainProduct):
    """An 8-bit map by oneDNN's product of uint8 rows and an int8 weight, in any dtype."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scales = scales
        self.sums = weight.sum(1) * scales
        self.zero_points = torch.zeros(len(scales), dtype=torch.int64)
        self.bias = bias

    def product(self, x: Tensor) -> Tensor:
        low, high = (bound.float() for bound in x.aminmax(dim=-1, keepdim=True))
        low, high = low.clamp_max_(0), high.clamp_min_(0)
        steps = ((high - low) / 255).clamp_min_(torch.finfo(torch.float32).tiny * 256)
        zeros = (-low / steps).round_()
        codes = (x / steps).round_().add_(zeros).clamp_(0, 255).to(torch.uint8)
        # The product's own input scale and zero are left at 1 and 0, since it knows one for all rows only.
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, self.weight, self.scales, self.zero_points, None, 1.0, 0, torch.float32, "none", [], ""
        )
        product.addcmul_(zeros, self.sums, value=-1).mul_(steps)
        if self.bias is not None:
            product.add_(self.bias)
        return product.to(x.dtype)


def written(y: Tensor, out: Rows | None) -> Rows:
    """y, or `out` with the values of y."""
    if out is None:
        return y
    out.copy_(y)
    return out


def gate(y: Tensor) -> Tensor:
    """silu of the first half of y's columns, times the second half."""
    a, b = y.chunk(2, dim=-1)
    return F.silu(a).mul_(b)


_ONEDNN = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
