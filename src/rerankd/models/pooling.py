"""From the states of a text's tokens to one vector, as in sentence-transformers' module Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import Span
from rerankd.models.checkpoint.modules import Mode

ONE_ROW: dict[Mode, int] = {"cls": 0, "lasttoken": -1}
"""Modes that read the state of one token, and the position of that token."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """The pooled states of one or several modes, concatenated."""

    modes: tuple[Mode, ...]

    def rows(self, spans: Sequence[Span]) -> list[int] | None:
        """The packed rows that are read, ascending; None for all."""
        if not all(mode in ONE_ROW for mode in self.modes):
            return None
        return sorted({row for span in spans for row in map(_one_row, self.modes, [span] * len(self.modes))})

    def __call__(self, states: Tensor, spans: Sequence[Span]) -> Tensor:
        """float32 [spans, modes * hidden], from the states of `rows`: float32 [rows, hidden]."""
        rows = self.rows(spans)
        places = None if rows is None else {row: place for place, row in enumerate(rows)}
        return torch.cat([_pooled(mode, states, spans, places) for mode in self.modes], dim=1)


def means(states: Tensor, spans: Sequence[Span]) -> Tensor:
    """The mean of the rows of each span: float32 [spans, hidden]."""
    lengths, owner = _owners(spans, states.device)
    return _sums(states, owner, len(spans)) / lengths[:, None]


def _one_row(mode: Mode, span: Span) -> int:
    return range(span.start, span.stop)[ONE_ROW[mode]]


def _pooled(mode: Mode, states: Tensor, spans: Sequence[Span], places: dict[int, int] | None) -> Tensor:
    if mode in ONE_ROW:
        rows = [_one_row(mode, span) for span in spans]
        indices = rows if places is None else [places[row] for row in rows]
        return states[torch.tensor(indices, device=states.device)]
    lengths, owner = _owners(spans, states.device)
    if mode == "max":
        lowest = torch.full((len(spans), states.shape[1]), float("-inf"), device=states.device)
        return lowest.scatter_reduce(0, owner[:, None].expand_as(states), states, "amax")
    if mode == "weightedmean":
        starts = lengths.cumsum(0) - lengths
        weights = torch.arange(1, len(owner) + 1, device=states.device) - starts[owner]
        return _sums(states * weights[:, None], owner, len(spans)) / (lengths * (lengths + 1) / 2)[:, None]
    divisor = lengths if mode == "mean" else lengths.sqrt()
    return _sums(states, owner, len(spans)) / divisor[:, None]


def _owners(spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor]:
    """The length of each span, and the span of each row."""
    lengths = torch.tensor([len(span) for span in spans], device=device)
    return lengths, torch.repeat_interleave(torch.arange(len(spans), device=device), lengths)


def _sums(states: Tensor, owner: Tensor, spans: int) -> Tensor:
    return torch.zeros(spans, states.shape[1], device=states.device).index_add_(0, owner, states)
