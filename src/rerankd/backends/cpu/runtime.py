"""What a layer needs to know of the processor; chosen once and handed down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.rows import Rows, plain
from rerankd.backends.torch.attention import sdpa_attention
from rerankd.layers.layout import AttentionLayout
from rerankd.layers.spec import LayerSpec

CHUNK_STEP = 256
"""Row tiles are of so many rows or a multiple: GEMMs take rows in blocks of that."""

MakeLinear: TypeAlias = Callable[[Tensor, Tensor | None], Linear]
"""A linear layer of a float weight [out, in] and a bias [out] or None."""


class Part(Protocol):
    """A linear layer or a norm."""

    @property
    def kernels(self) -> Kernels | None:
        """The kernels that compute it, or None where torch does."""
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """Kernels and sizes of one loaded model.

    kernels: fused row operations in this dtype, or None for torch's own functions
    linear: makes a linear layer, quantised where the model is
    exact_linear: the same for linear layers that 8 bits would cost too much precision; never quantised
    chunk_values: how many values packed rows may hold between two GEMMs, so that they stay in the processor's cache
    """

    dtype: torch.dtype
    kernels: Kernels | None
    linear: MakeLinear
    exact_linear: MakeLinear
    chunk_values: int

    def rows_at_once(self, width: int) -> int:
        """How many rows go through a layer together, for the most values that a row has on the way."""
        return max(self.chunk_values // width // CHUNK_STEP, 1) * CHUNK_STEP

    def room(self, rows: int, width: int, part: int = 0) -> Rows:
        """Room for GEMMs' outputs [rows, width], of which views of `part` columns are taken, if it is not 0."""
        if self.kernels is not None and self.kernels.fit_strips(part):
            return self.kernels.empty_rows(rows, width)
        return torch.empty(rows, width, dtype=self.dtype)

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

    def attend(self, q: Rows, k: Rows, v: Rows, spec: LayerSpec, layout: AttentionLayout) -> Rows:
        """Attention for q [query rows, heads * head_dim], k and v [T, kv_heads * head_dim]; of q's shape."""
        if self.kernels is not None and self.kernels.fit_attention(spec.head_dim):
            return self.kernels.attention(q, k, v, spec.head_dim, layout, spec.softmax_scale)
        queries, keys, values = (plain(x).view(len(x), -1, spec.head_dim) for x in (q, k, v))
        return sdpa_attention(queries, keys, values, layout, spec.softmax_scale)

    def chunks(self, rows: int, width: int) -> Iterator[slice]:
        """Slices that cover `rows` rows in order, of as many as go from GEMM to GEMM at a time.

        width: the most values that a row has between two GEMMs
        """
        step = self.rows_at_once(width)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def chunks_of(self, rows: slice, width: int) -> Iterator[tuple[slice, slice]]:
        """`chunks` of some rows, each counted among all rows and from the first of these."""
        for own in self.chunks(rows.stop - rows.start, width):
            yield slice(rows.start + own.start, rows.start + own.stop), own
