"""Linear maps: y = x W^T + b."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear(Protocol):
    """A loaded linear map from `[rows, in_features]` to `[rows, out_features]`, in the model's dtype."""

    def __call__(self, x: Tensor) -> Tensor: ...


class DenseLinear:
    """A linear map whose weight is kept as the matrix that it is: `[out_features, in_features]`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Linear:
    """A linear map in 8-bit integers (W8A8), for CPUs: oneDNN's product of uint8 rows and an int8 weight.

    Each output channel of the weight is scaled to its largest magnitude when loaded, and each row of the input
    to its own when used: a row with an outlier costs no other row its precision. The sum is exact in int32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scale = weight.float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        rounded = (weight.float() / scale[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.scale = scale
        self.zero_points = torch.zeros(len(scale), dtype=torch.int64)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        # In float32, since bfloat16 has no more digits than int8 and would round twice.
        largest = x.abs().amax(-1, keepdim=True).float().clamp_min_(torch.finfo(torch.float32).tiny * 256)
        rounded = (x * (127 / largest)).round_().add_(128).to(torch.uint8)
        # The product's own input scale is left at 1, since it knows one for all rows only.
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 128, self.weight, self.scale, self.zero_points, None, 1.0, 0, x.dtype, "none", [], ""
        )
        product.mul_(largest / 127)
        return product if self.bias is None else product.add_(self.bias)
