"""Laying several requests' prompts end to end in one token dimension."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy
import torch
from numpy.typing import NDArray

from rerankd.core import PackedBatch, PackedGroup, PromptGroup, Segment, Span


def pack(groups: Sequence[PromptGroup], shares_prefix: bool, device: torch.device) -> PackedBatch:
    """`[P][D1]...[DN]` of each group, group after group: see `PackedBatch` for shapes.

    Where the suffixes share the prefix, their positions continue from it; else every segment is a sequence of its own
    and starts at 0.
    """
    segments: list[Segment] = []
    firsts: list[int] = []
    for group in groups:
        segments += (group.prefix, *group.suffixes)
        firsts += (0, *[len(group.prefix) if shares_prefix else 0] * len(group.suffixes))
    lengths = numpy.fromiter(map(len, segments), dtype=numpy.int64, count=len(segments))
    stops = lengths.cumsum()
    total = int(stops[-1]) if segments else 0
    # The place of a row less that of its segment's first row, from the position of that on.
    positions = numpy.arange(total) - numpy.repeat(stops - lengths - numpy.array(firsts, dtype=numpy.int64), lengths)
    rows = [_ids(segments, total), positions]
    if any(segment.token_types and any(segment.token_types) for segment in segments):
        rows.append(_types(segments, total))
    tensors = torch.from_numpy(numpy.stack(rows))
    if device.type == "cuda":
        # From pinned memory the copy does not wait for the batch before.
        tensors = tensors.pin_memory()
    token_ids, positions_there, *token_types = tensors.to(device, non_blocking=True).unbind()
    spans = iter(map(Span, (stops - lengths).tolist(), stops.tolist()))
    return PackedBatch(
        token_ids=token_ids,
        positions=positions_there,
        token_types=token_types[0] if token_types else None,
        groups=tuple(
            PackedGroup(
                prefix=next(spans),
                suffixes=tuple(next(spans) for _ in group.suffixes),
                labels=group.labels,
                unseen=group.prefix.unseen,
                tail=group.tail,
                values=group.values,
                outputs=bool(group.outputs),
            )
            for group in groups
        ),
        visuals=tuple(chain.from_iterable(segment.visuals for segment in segments)),
    )


def _ids(segments: Sequence[Segment], total: int) -> NDArray[numpy.int64]:
    ids = chain.from_iterable(segment.token_ids for segment in segments)
    return numpy.fromiter(ids, dtype=numpy.int64, count=total)


def _types(segments: Sequence[Segment], total: int) -> NDArray[numpy.int64]:
    types = chain.from_iterable(segment.token_types or bytes(len(segment)) for segment in segments)
    return numpy.fromiter(types, dtype=numpy.int64, count=total)
