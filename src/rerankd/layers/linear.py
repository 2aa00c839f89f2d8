"""Linear maps, y = x W^T + b, with what follows them in the same pass where the kernel allows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.native import Int8Rows, Kernels

Nonlinearity: TypeAlias = Literal["silu", "gelu", "gelu_tanh"]
Rows: TypeAlias = Any
"""What `Linear.read` made of [rows, in_features]: the same tensor, or it in 8 bits."""


QUANTIZED_AT_ONCE = 256
"""Rows of a weight that are quantised together."""


class Linear(Protocol):
    """A loaded linear map from `[rows, in_features]` to `[rows, out_features]`, in the model's dtype.

    Its input is a tensor, or what `read` made of one. Where `out` is given, the result is written there.
    """

    def read(self, x: Tensor) -> Rows:
        """x as this map and its like take it, done once where several read the same rows."""
        ...

    def __call__(self, x: Rows, then: Nonlinearity | None = None, out: Tensor | None = None) -> Tensor:
        """x W^T + b, or a nonlinearity of it."""
        ...

    def times(self, x: Rows, factor: Tensor) -> Tensor:
        """(x W^T + b) * factor, for a factor of the output's shape."""
        ...

    def plus(self, x: Rows, addend: Tensor, out: Tensor | None = None) -> Tensor:
        """x W^T + b + addend, for an addend of the output's shape."""
        ...


class PlainProduct(ABC):
    """What a map does with a product that torch has computed: each step a pass of its own."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x W^T + b."""

    def read(self, x: Tensor) -> Tensor:
        return x

    def __call__(self, x: Tensor, then: Nonlinearity | None = None, out: Tensor | None = None) -> Tensor:
        y = apply(self.product(x), then)
        return y if out is None else out.copy_(y)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.product(x).mul_(factor)

    def plus(self, x: Tensor, addend: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.add(self.product(x), addend, out=out)


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

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = bias

    def read(self, x: Tensor) -> Tensor:
        return x

    def __call__(self, x: Tensor, then: Nonlinearity | None = None, out: Tensor | None = None) -> Tensor:
        name, algorithm = _ONEDNN[then]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        return product if out is None else out.copy_(product)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, self.bias, "mul")
        return product

    def plus(self, x: Tensor, addend: Tensor, out: Tensor | None = None) -> Tensor:
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, addend, self.weight, self.bias, "add")
        return total if out is None else out.copy_(total)


class TiledProduct(ABC):
    """What the project's own products can be followed by, before they are rounded."""

    @abstractmethod
    def product(self, x: Rows, then: str | None, other: Tensor | None, out: Tensor | None) -> Tensor:
        """x W^T + b and what follows it, as `Kernels.product` takes it."""

    def __call__(self, x: Rows, then: Nonlinearity | None = None, out: Tensor | None = None) -> Tensor:
        return self.product(x, then, None, out)

    def times(self, x: Rows, factor: Tensor) -> Tensor:
        return self.product(x, "times", factor, None)

    def plus(self, x: Rows, addend: Tensor, out: Tensor | None = None) -> Tensor:
        return self.product(x, "plus", addend, out)


class TiledLinear(TiledProduct):
    """A bfloat16 map on a CPU with AMX, whose weight is laid out once in tiles."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        self.weight = kernels.pack_bf16(weight)
        self.bias = bias
        self.kernels = kernels

    def read(self, x: Tensor) -> Tensor:
        return x

    def product(self, x: Tensor, then: str | None, other: Tensor | None, out: Tensor | None) -> Tensor:
        return self.kernels.product(x, self.weight, self.bias, then, other, out)


def bfloat16_linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None) -> Linear:
    """A linear map in bfloat16 on a CPU, by the fastest product that can take it."""
    if kernels is not None and kernels.fit_products(*weight.shape):
        return TiledLinear(weight, bias, kernels)
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
        return TiledInt8Linear(rounded, scales, bias, kernels)
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


class TiledInt8Linear(TiledProduct):
    """An 8-bit map by the project's own kernels: bfloat16 rows, on a CPU with AMX."""

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        self.weight, self.sums = kernels.pack_int8(weight)
        self.scales = scales
        self.bias = bias
        self.kernels = kernels

    def read(self, x: Tensor) -> Int8Rows:
        return self.kernels.quantize(x)

    def product(self, x: Rows, then: str | None, other: Tensor | None, out: Tensor | None) -> Tensor:
        rows = x if isinstance(x, Int8Rows) else self.kernels.quantize(x)
        return self.kernels.int8_product(rows, self.weight, self.scales, self.sums, self.bias, then, other, out)


def apply(x: Tensor, nonlinearity: Nonlinearity | None) -> Tensor:
    """The nonlinearity of x, or x itself."""
    match nonlinearity:
        case None:
            return x
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")


_ONEDNN = {None: ("none", ""), "silu": ("swish", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
