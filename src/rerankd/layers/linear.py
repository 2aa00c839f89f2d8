"""Linear maps: y = x W^T + b."""

from __future__ import annotations

from typing import Protocol

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
