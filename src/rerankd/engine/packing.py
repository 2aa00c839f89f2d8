"""Laying several requests' prompts end to end in one token dimension."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from rerankd.core import PackedBatch, PackedGroup, PromptGroup, Segment, Span, Visual


def pack(groups: Sequence[PromptGroup], shares_prefix: bool, device: torch.device) -> PackedBatch:
    """`[P][D1]...[DN]` of each group, group after group: see `PackedBatch` for shapes.

    Where the suffixes share the prefix, their positions continue from it; else every segment is a sequence of its own
    and starts at 0.
    """
    token_ids, positions, token_types = array("q"), array("q"), array("q")
    visuals: list[Visual] = []
    packed: list[PackedGroup] = []

    def lay(segment: Segment, first_position: int) -> Span:
        start = len(token_ids)
        token_ids.extend(segment.token_ids)
        positions.extend(range(first_position, first_position + len(segment)))
        token_types.extend(segment.token_types or bytes(len(segment)))
        visuals.extend(segment.visuals)
        return Span(start, len(token_ids))

    for group in groups:
        prefix = lay(group.prefix, 0)
        first = len(prefix) if shares_prefix else 0
        packed.append(PackedGroup(prefix, tuple(lay(suffix, first) for suffix in group.suffixes), group.labels))
    return PackedBatch(
        token_ids=_tensor(token_ids, device),
        positions=_tensor(positions, device),
        token_types=_tensor(token_types, device) if any(token_types) else None,
        groups=tuple(packed),
        visuals=tuple(visuals),
    )


def _tensor(values: array[int], device: torch.device) -> Tensor:
    """int64 [values], which a list would take several times as long to become."""
    return torch.frombuffer(values, dtype=torch.int64).to(device)
