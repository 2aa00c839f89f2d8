"""What a layer needs to know of where it runs; chosen once by the engine and handed down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.layers.attention import Attention
from rerankd.layers.linear import Linear
from rerankd.layers.native import Kernels


@dataclass(frozen=True, slots=True)
class Runtime:
    """Placement and kernels of one loaded model.

    kernels: fused row operations in this dtype and place, or None for torch's own functions
    linear: makes a linear map of a float weight [out, in] and a bias [out] or None, both already in place
    exact_linear: the same for maps that 8 bits would cost too much precision; never quantised
    chunk_rows: how many packed rows go from product to product at a time, so that what lies between two
        products stays in the processor's cache; None for all at once
    """

    device: torch.device
    dtype: torch.dtype
    attend: Attention
    kernels: Kernels | None
    linear: Callable[[Tensor, Tensor | None], Linear]
    exact_linear: Callable[[Tensor, Tensor | None], Linear]
    chunk_rows: int | None

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices of at most `chunk_rows` that cover `rows` rows in order."""
        step = self.chunk_rows or max(rows, 1)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
