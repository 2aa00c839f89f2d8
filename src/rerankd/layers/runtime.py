"""What a layer needs to know of where it runs; chosen once by the engine and handed down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rerankd.layers.attention import Attention, AttentionLayout
from rerankd.layers.linear import Linear
from rerankd.layers.native import Kernels
from rerankd.layers.rows import Rows, plain

CHUNK_STEP = 256
"""Chunks are of so many rows or a multiple: products take rows in blocks of that."""


class Part(Protocol):
    """A map or a norm."""

    @property
    def kernels(self) -> Kernels | None:
        """What computes it, or None where torch does."""
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """Placement and kernels of one loaded model.

    attention: the backend for what `kernels` have no attention for
    kernels: fused row operations in this dtype and place, or None for torch's own functions
    linear: makes a linear map of a float weight [out, in] and a bias [out] or None, both already in place
    exact_linear: the same for maps that 8 bits would cost too much precision; never quantised
    chunk_values: how many values packed rows may hold between two products, so that they stay in the processor's cache;
        None for any number
    """

    device: torch.device
    dtype: torch.dtype
    attention: Attention
    kernels: Kernels | None
    linear: Callable[[Tensor, Tensor | None], Linear]
    exact_linear: Callable[[Tensor, Tensor | None], Linear]
    chunk_values: int | None

    def rows_at_once(self, width: int) -> int | None:
        """How many rows go through a layer together, for the most values that a row has on the way; None for any."""
        if self.chunk_values is None:
            return None
        return max(self.chunk_values // width // CHUNK_STEP, 1) * CHUNK_STEP

    def room(self, rows: int, width: int) -> Rows:
        """Room for products' outputs [rows, width]."""
        if self.kernels is not None:
            return self.kernels.empty_rows(rows, width)
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)

    def rows(self, x: Tensor) -> Rows:
        """x [rows, width], which may be written over, in the form that layers pass on."""
        return x if self.kernels is None or not self.kernels.fit_strips(x.shape[1]) else self.kernels.tile(x)

    def chosen(self, x: Rows, rows: Tensor) -> Rows:
        """The rows of x whose numbers `rows` (int64) has, copied."""
        return plain(x)[rows] if self.kernels is None else self.kernels.choose(x, rows)

    def together(self, head_dim: int, *parts: Part) -> Callable[[], AbstractContextManager[None]]:
        """A scope in which a layer of these parts, with heads of this size, may call for one operation after another
        before the first is computed (`Kernels.together`); where torch computes a part, a scope that means nothing."""
        if self.kernels is None or not self.kernels.fit_attention(head_dim):
            return nullcontext
        return self.kernels.together if all(part.kernels is not None for part in parts) else nullcontext

    def attend(self, q: Rows, k: Rows, v: Rows, head_dim: int, layout: AttentionLayout) -> Rows:
        """Attention for q [query rows, heads * head_dim], k and v [T, kv_heads * head_dim]; of q's shape."""
        scale = head_dim**-0.5
        if self.kernels is not None and self.kernels.fit_attention(head_dim):
            return self.kernels.attention(q, k, v, head_dim, layout, scale)
        queries, keys, values = (plain(x).view(len(x), x.shape[1] // head_dim, head_dim) for x in (q, k, v))
        return self.attention(queries, keys, values, layout, scale)

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
