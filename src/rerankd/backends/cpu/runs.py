"""A layout in the form in which the attention kernel reads it."""

from __future__ import annotations

from array import array

from rerankd.layers.layout import AttentionLayout

OWN_PER_SHARED = 4
"""Own keys in a run of blocks, for each of the keys that they share (see `runs_of`)."""


def runs_of(layout: AttentionLayout) -> tuple[array[int], array[int]]:
    """The blocks in runs that see the same shared keys, which the kernel packs once for a run.

    int64 [runs + 1], where runs begin, and int64 [blocks * 6]: start and stop of query, shared and own of each block.
    A run's own keys are bounded, so that many threads find work, of rows that they computed; blocks that share none
    are runs of their own.
    """
    starts, keys = [0], 0
    for i, block in enumerate(layout.blocks):
        if keys and (block.shared != layout.blocks[i - 1].shared or keys > OWN_PER_SHARED * len(block.shared)):
            starts.append(i)
            keys = 0
        keys += len(block.own)
    spans = (span for block in layout.blocks for span in (block.query, block.shared, block.own))
    bounds = array("q", (bound for span in spans for bound in (span.start, span.stop)))
    return array("q", (*starts, len(layout.blocks))), bounds
