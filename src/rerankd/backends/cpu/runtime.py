"""Kernels and sizes that the layers of a model share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.rows import Rows, to_dense
from rerankd.backends.torch.attention import sdpa_attention
from rerankd.layers.layout import AttentionLayout
from rerankd.layers.spec import LayerSpec

ROW_TILE_STEP = 256
"""The rows of a row tile are a multiple of this number, in which GEMMs block rows."""

MakeLinear: TypeAlias = Callable[[Tensor, Tensor | None], Linear]
"""A linear layer from a float weight [out, in] and a bias [out] or None."""


class LayerPart(Protocol):
    """A linear layer or a norm."""

    @property
    def kernels(self) -> Kernels | None:
        """The kernels that compute the part, or None where torch does."""
        ...

    @property
    def weights(self) -> Sequence[Tensor | None]:
        """The tensors whose addresses the kernels' operations get, beside those of rows."""
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """The kernels and sizes of one loaded model.

    kernels: fused operations in this dtype, or None for torch's own functions
    linear: makes a linear layer, quantised if the model is
    precise_linear: makes a linear layer that loses too much precision in 8 bits: in the model's dtype or in 16 bits
    row_tile_values: the most values of a row tile between two GEMMs, so that the tile stays in the processor's cache
    least_rows: the fewest rows of a row tile, if there are as many, so that weights are seldom loaded
    """

    dtype: torch.dtype
    kernels: Kernels | None
    linear: MakeLinear
    precise_linear: MakeLinear
    row_tile_values: int
    least_rows: int

    def rows_per_tile(self, width: int) -> int:
        """The rows of a row tile. width: the most values that a row has between two GEMMs"""
        return max(self.row_tile_values // width // ROW_TILE_STEP * ROW_TILE_STEP, self.least_rows)

    def empty_rows(self, rows: int, width: int, part: int = 0) -> Rows:
        """Rows [rows, width] without values, for GEMMs to write. part: the columns of views that are taken, if any"""
        if self.kernels is not None and self.kernels.fit_blocked(part):
            return self.kernels.empty_rows(rows, width)
        return torch.empty(rows, width, dtype=self.dtype)

    def to_rows(self, x: Tensor) -> Rows:
        """x [rows, width] in the layout that layers pass on: a copy, or x itself, which layers may overwrite."""
        return x if self.kernels is None or not self.kernels.fit_blocked(x.shape[1]) else self.kernels.to_blocked(x)

    def index_select(self, x: Rows, rows: Tensor) -> Rows:
        """A copy of the rows of x with indices `rows` (int64)."""
        return to_dense(x)[rows] if self.kernels is None else self.kernels.index_select(x, rows)

    def recorded(self, head_dim: int, *parts: LayerPart) -> Callable[[], AbstractContextManager[None]]:
        """`Kernels.recorded` for a layer of these parts and of heads of this size, if kernels compute all of the layer.

        Where torch computes a part, the answer is a context without effect: torch would read rows that have no values
        yet.
        """
        if self.kernels is None or not self.kernels.fit_attention(head_dim):
            return nullcontext
        return self.kernels.recorded if all(part.kernels is not None for part in parts) else nullcontext

    def attend(self, q: Rows, k: Rows, v: Rows, spec: LayerSpec, layout: AttentionLayout) -> Rows:
        """Attention of q [query rows, heads * head_dim], k and v [T, kv_heads * head_dim], in the shape of q."""
        if self.kernels is not None and self.kernels.fit_attention(spec.head_dim):
            return self.kernels.attention(q, k, v, spec.head_dim, layout, spec.softmax_scale)
        queries, keys, values = (to_dense(x).view(len(x), -1, spec.head_dim) for x in (q, k, v))
        return sdpa_attention(queries, keys, values, layout, spec.softmax_scale)

    def row_tiles(self, rows: int, width: int) -> Iterator[slice]:
        """`rows` rows cut into row tiles, in order. width: the most values that a row has between two GEMMs"""
        step = self.rows_per_tile(width)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def row_tiles_of(self, rows: slice, width: int) -> Iterator[tuple[slice, slice]]:
        """The row tiles of some rows: each tile's indices among all rows, and among the given ones."""
        for tile in self.row_tiles(rows.stop - rows.start, width):
            yield slice(rows.start + tile.start, rows.start + tile.stop), tile
