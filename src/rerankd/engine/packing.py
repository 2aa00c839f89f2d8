"""Laying several requests' prompts end to end in one token dimension."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain

import numpy
import torch

from rerankd.core import PackedBatch, PackedGroup, PromptGroup, Segment, Span


def pack(groups: Sequence[PromptGroup], shares_prefix: bool, device: torch.device) -> PackedBatch:
    """`[P][D1]...[DN]` of each group, group after group: see `PackedBatch` for shapes.

    If the suffixes share the prefix, their positions continue from its end. Otherwise every segment is a sequence of
    its own, whose positions start at 0.
    """
    segments: list[Segment] = []
    firsts: list[int] = []
    for group in groups:
        segments += (group.prefix, *group.suffixes)
        firsts += (0, *[len(group.prefix) if shares_prefix else 0] * len(group.suffixes))
    lengths = list(map(len, segments))
    stops = list(accumulate(lengths))
    rows: list[Iterable[Sequence[int]]] = [
        (segment.token_ids for segment in segments),
        (range(first, first + length) for first, length in zip(firsts, lengths, strict=True)),
    ]
    if any(segment.token_types and any(segment.token_types) for segment in segments):
        rows.append(segment.token_types or bytes(len(segment)) for segment in segments)
    # One call converts all values: for few tokens, calling a function of numpy takes longer than its work.
    values = numpy.fromiter(chain.from_iterable(chain.from_iterable(rows)), dtype=numpy.int64)
    tensors = torch.from_numpy(values.reshape(len(rows), sum(lengths)))
    if device.type == "cuda":
        # From pinned memory the copy does not wait for the batch before.
        tensors = tensors.pin_memory()
    token_ids, positions, *token_types = tensors.to(device, non_blocking=True).unbind()
    spans = iter(map(Span, [0, *stops], stops))
    return PackedBatch(
        token_ids=token_ids,
        positions=positions,
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
