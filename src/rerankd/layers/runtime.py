"""What a layer needs to know of where it runs; chosen once by the engine and handed down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.layers.attention import Attention
from rerankd.layers.linear import Linear
from rerankd.layers.native import Kernels

CHUNK_STEP = 256
"""Chunks are of so many rows or a multiple: products take rows in blocks of that."""
SPARE = 32
"""Values between two rows of room on a CPU: rows that begin a multiple of 4 KB apart share few sets of the caches."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Placement and kernels of one loaded model.

    kernels: fused row operations in this dtype and place, or None for torch's own functions
    linear: makes a linear map of a float weight [out, in] and a bias [out] or None, both already in place
    exact_linear: the same for maps that 8 bits would cost too much precision; never quantised
    chunk_values: how many values packed rows may hold between two products, so that they stay in the processor's cache;
        None for any number
    """

    device: torch.device
    dtype: torch.dtype
    attend: Attention
    kernels: Kernels | None
    linear: Callable[[Tensor, Tensor | None], Linear]
    exact_linear: Callable[[Tensor, Tensor | None], Linear]
    chunk_values: int | None

    def rows_at_once(self, width: int) -> int | None:
        """How many rows go through a layer together, for the most values that a row has on the way; None for any."""
        if self.chunk_values is None:
            return None
        return max(self.chunk_values // width // CHUNK_STEP, 1) * CHUNK_STEP

    def room(self, rows: int, width: int) -> Tensor:
        """Room for products' outputs [rows, width]."""
        spare = 0 if self.kernels is None else SPARE
        return torch.empty(rows, width + spare, dtype=self.dtype, device=self.device)[:, :width]

    def chunks(self, rows: int, width: int) -> Iterator[slice]:
        """Slices that cover `rows` rows in order, of as many as go from product to product at a time.

        width: the most values that a row has between two products
        """
        step = self.rows_at_once(width) or max(rows, 1)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def chunks_of(self, rows: slice, width: int) -> Iterator[tuple[slice, slice]]:
        """`chunks` of some rows, each counted among all rows and from the first of these."""
        for own in self.chunks(rows.stop - rows.start, width):
            yield slice(rows.start + own.start, rows.start + own.stop), own
