"""Laying several requests' prompts end to end in one token dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rerankd.core import Family, PackedBatch, PackedGroup, PromptGroup, Segment, Span, Visual


def pack(groups: Sequence[PromptGroup], family: Family, device: torch.device) -> PackedBatch:
    """`[P][D1]...[DN]` of each group, group after group: see `PackedBatch` for shapes.

    In a decoder a suffix's positions continue from its prefix; in an encoder every segment is a sequence of
    its own and starts at 0.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    token_types: list[int] = []
    visuals: list[Visual] = []
    packed: list[PackedGroup] = []

    def lay(segment: Segment, first_position: int) -> Span:
        start = len(token_ids)
        token_ids.extend(segment.token_ids)
        positions.extend(range(first_position, first_position + len(segment)))
        token_types.extend(segment.token_types or [0] * len(segment))
        visuals.extend(segment.visuals)
        return Span(start, len(token_ids))

    for group in groups:
        prefix = lay(group.prefix, 0)
        first = len(prefix) if family == "decoder" else 0
        packed.append(PackedGroup(prefix, tuple(lay(suffix, first) for suffix in group.suffixes), group.labels))
    return PackedBatch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64).to(device),
        positions=torch.tensor(positions, dtype=torch.int64).to(device),
        token_types=torch.tensor(token_types, dtype=torch.int64).to(device) if any(token_types) else None,
        groups=tuple(packed),
        visuals=tuple(visuals),
    )
