"""Forwards of small batches, recorded once for each size and replayed: a launch costs the host more than a small GEMM
costs the device.

Sizes are rounded up. A padded row belongs to no tile of attention, so no other row reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy
import torch
from torch import Tensor

from rerankd.backends.cuda.tiles import FIELDS, KEPT_QUERIES, QUERIES, HostTiles
from rerankd.layers.layout import AttentionLayout, kept_layout
from rerankd.layers.transformer import Tokens

ROWS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Tokens of a recorded forward. Larger batches keep the device busy without one."""
KEPT = (1, 8, 32, 128)
"""Rows that its last layer computes."""

Replay: TypeAlias = Callable[[], Tensor]
Recorder: TypeAlias = Callable[[Callable[[], Tensor]], Replay]
"""Runs a function of static tensors, and returns a function that repeats the same work and returns its result."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of the batches that a recorded forward serves.

    kept: rows of the last layer, 0 for all; coordinates: values of a position, 0 for a model without positions
    """

    rows: int
    kept: int
    coordinates: int

    @classmethod
    def of(cls, rows: int, kept: int | None, coordinates: int) -> Size | None:
        """The least size that holds a batch; None for a batch that is too large."""
        if not rows or rows > ROWS[-1] or (kept or 0) > KEPT[-1]:
            return None
        padded = 0 if kept is None else KEPT[bisect_left(KEPT, kept)]
        return cls(ROWS[bisect_left(ROWS, rows)], padded, coordinates)

    @property
    def tiles(self) -> int:
        """The number of tiles: each request has at least two, one of them for its prefix."""
        return max(16, self.rows // 8)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tensors that a recorded forward reads, at places that stay.

    values: int32, the tiles and row ranges of `HostTiles`, of `Size.tiles` tiles; then those of the last layer,
        of `Size.kept` rows
    keep: int64 [kept], or None
    """

    tokens: Tokens
    positions: Tensor | None
    values: Tensor
    keep: Tensor | None
    size: Size

    @classmethod
    def empty(cls, size: Size, device: torch.device) -> Inputs:
        """Inputs of zeros: tokens that no tile sees."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        tokens = Tokens(zeros(size.rows), zeros(size.rows), zeros(size.rows))
        positions = None
        if size.coordinates:
            positions = zeros(size.rows) if size.coordinates == 1 else zeros(size.coordinates, size.rows)
        values = zeros(_buffer_size(size.tiles, size.rows) + _buffer_size(size.kept, size.kept), dtype=torch.int32)
        return cls(tokens, positions, values, zeros(size.kept) if size.kept else None, size)

    def tiles(self) -> tuple[HostTiles, Tensor]:
        """The form of the tiles of all layers, and their values."""
        size = self.size
        form = HostTiles(numpy.empty(0, numpy.int32), size.tiles, size.rows, QUERIES)
        return form, self.values[: _buffer_size(size.tiles, size.rows)]

    def last(self) -> tuple[HostTiles, Tensor]:
        """The form of the tiles of the last layer, and their values."""
        size = self.size
        form = HostTiles(numpy.empty(0, numpy.int32), size.kept, size.kept, KEPT_QUERIES)
        return form, self.values[_buffer_size(size.tiles, size.rows) :]

    def fill(
        self, tokens: Tokens, positions: Tensor | None, layout: AttentionLayout, keep: Sequence[int] | None
    ) -> bool:
        """Copy a batch into the tensors. Returns False, and copies nothing, for a batch with too many tiles."""
        size, rows = self.size, len(tokens.ids)
        whole = HostTiles.of(layout, QUERIES)
        last = None if keep is None else HostTiles.of(kept_layout(layout, keep), KEPT_QUERIES)
        if whole.tiles > size.tiles:
            return False
        values = numpy.zeros(len(self.values), dtype=numpy.int32)
        _lay(whole, values[: _buffer_size(size.tiles, size.rows)], size.tiles, size.rows)
        if last is not None:
            _lay(last, values[_buffer_size(size.tiles, size.rows) :], size.kept, size.kept)
        _copy(self.values, torch.from_numpy(values))
        self.tokens.ids[:rows].copy_(tokens.ids)
        self.tokens.positions[:rows].copy_(tokens.positions)
        assert self.tokens.types is not None
        if tokens.types is None:
            self.tokens.types.zero_()
        else:
            self.tokens.types[:rows].copy_(tokens.types)
        if self.positions is not None and positions is not None:
            self.positions[..., :rows].copy_(positions)
        if self.keep is not None and keep is not None:
            _copy(self.keep[: len(keep)], torch.tensor(keep, dtype=torch.int64))
        return True


class Graphs:
    """Recorded forwards of one transformer, made at the first batch of each size."""

    def __init__(self, forward: Callable[[Inputs], Tensor], device: torch.device, record: Recorder) -> None:
        """forward: runs the transformer on padded inputs"""
        self._forward, self._device, self._record = forward, device, record
        self._recorded: dict[Size, tuple[Inputs, Replay]] = {}

    def __call__(
        self, tokens: Tokens, layout: AttentionLayout, positions: Tensor | None, keep: Sequence[int] | None
    ) -> Tensor | None:
        """The result of `Transformer`; None for a batch that is too large for every recorded forward."""
        kept = None if keep is None else len(keep)
        size = Size.of(len(tokens.ids), kept, 0 if positions is None else 1 if positions.dim() == 1 else len(positions))
        if size is None:
            return None
        recorded = self._recorded.get(size)
        inputs = Inputs.empty(size, self._device) if recorded is None else recorded[0]
        if not inputs.fill(tokens, positions, layout, keep):
            return None
        if recorded is None:
            recorded = self._recorded[size] = inputs, self._record(lambda: self._forward(inputs))
        states = recorded[1]()
        return states[: len(tokens.ids) if kept is None else kept].clone()


def cuda_recorder() -> Recorder:
    """Records CUDA graphs, which share one pool of memory: they run one after another."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> Replay:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # compiles kernels and makes the handles of libraries, which cannot be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return record


def _buffer_size(tiles: int, rows: int) -> int:
    return tiles * FIELDS + 3 * rows


def _lay(host: HostTiles, values: numpy.ndarray, tiles: int, rows: int) -> None:
    """The values of `host` into an array of `tiles` and `rows`, with zeros after each part."""
    cut = host.tiles * FIELDS
    values[:cut] = host.values[:cut]
    ranges = values[tiles * FIELDS :].reshape(3, rows)
    ranges[:, : host.rows] = host.values[cut:].reshape(3, host.rows)


def _copy(to: Tensor, values: Tensor) -> None:
    to.copy_(values.pin_memory() if to.device.type == "cuda" else values, non_blocking=True)
