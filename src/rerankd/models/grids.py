"""Places of patches and visual tokens: learned positions, coordinates, and positions among packed tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from rerankd.core import PackedBatch, Span, Visual

Grid: TypeAlias = tuple[int, int, int]
"""Patches in time, height and width."""


def resampled(table: Tensor, grid: Grid, merge: int) -> Tensor:
    """A learned square of positions [side, side, hidden], resampled bilinearly to a grid: float32 [patches, hidden]."""
    time, height, width = grid
    by_row = _resample(table, height)
    both = _resample(by_row.transpose(0, 1), width).transpose(0, 1)
    return in_merge_order(both, merge).repeat(time, 1)


def coordinates(grid: Grid, merge: int, device: torch.device) -> Tensor:
    """Row and column of each patch: int64 [2, patches]."""
    time, height, width = grid
    rows = torch.arange(height, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, device=device)[None, :].expand(height, width)
    return in_merge_order(torch.stack([rows, columns], -1), merge).repeat(time, 1).T


def in_merge_order(grid: Tensor, merge: int) -> Tensor:
    """[height, width, n] -> [height * width, n], neighbours that merge into one token side by side."""
    height, width, n = grid.shape
    blocks = grid.reshape(height // merge, merge, width // merge, merge, n)
    return blocks.transpose(1, 2).reshape(height * width, n)


def steps(grids: Sequence[Grid]) -> list[Span]:
    """The patches of each image, or of each step in time of a video."""
    spans, row = [], 0
    for time, height, width in grids:
        for _ in range(time):
            spans.append(Span(row, row + height * width))
            row += height * width
    return spans


def visual_positions(batch: PackedBatch, is_visual: Sequence[bool], merge: int) -> Tensor:
    """Positions in time, height and width of every packed token: int64 [3, T].

    A text token has three equal positions, one more than the token before. The tokens of an image, or of one
    step in time of a video, share a time and lie in a grid from there; the next token begins behind the longer
    side of the grid. A suffix continues from its prefix.
    """
    positions = torch.empty(3, len(is_visual), dtype=torch.int64)
    grids = _token_grids(batch.visuals, merge)

    def lay(row: int, stop: int, position: int) -> int:
        while row < stop:
            if is_visual[row]:
                height, width = next(grids)
                step_positions = positions[:, row : row + height * width].view(3, height, width)
                step_positions[0] = position
                step_positions[1] = position + torch.arange(height)[:, None]
                step_positions[2] = position + torch.arange(width)[None, :]
                row += height * width
                position += max(height, width)
            else:
                end = next((i for i in range(row, stop) if is_visual[i]), stop)
                positions[:, row:end] = torch.arange(position, position + end - row)
                position += end - row
                row = end
        return position

    for group in batch.groups:
        behind = lay(group.prefix.start, group.prefix.stop, 0)
        for suffix in group.suffixes:
            lay(suffix.start, suffix.stop, behind)
    return positions


def _token_grids(visuals: Sequence[Visual], merge: int) -> Iterator[tuple[int, int]]:
    """Height and width in tokens of each step in time of each visual."""
    for visual in visuals:
        time, height, width = visual.grid
        for _ in range(time):
            yield height // merge, width // merge


def _resample(table: Tensor, count: int) -> Tensor:
    """`count` rows spread evenly from the first to the last of `table` [rows, ...], linearly interpolated."""
    where = torch.linspace(0, len(table) - 1, count, device=table.device)
    below = where.long()
    above = (below + 1).clamp(max=len(table) - 1)
    weight = (where - below).view(-1, *[1] * (table.dim() - 1))
    return table[below] * (1 - weight) + table[above] * weight
