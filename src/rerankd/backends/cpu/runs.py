"""A layout in the form that the attention kernel reads."""

from __future__ import annotations

from array import array

from rerankd.layers.layout import AttentionLayout

OWN_PER_SHARED = 4
"""The most own keys in a run of blocks, for each key of the shared prefix (see `runs_of`)."""


def runs_of(layout: AttentionLayout) -> tuple[array[int], array[int]]:
    """Runs of blocks that share a prefix, whose keys and values the kernel packs once for a run.

    Returns the first block of each run, int64 [runs + 1], and the start and stop of each block's query, shared and own,
    int64 [blocks * 6]. The own keys of a run are bounded, so that there is work for many threads, each with rows that
    it computed. A block without a prefix is a run by itself.
    """
    starts, keys = list[int](), 0
    for i, block in enumerate(layout.blocks):
        ends = keys and (block.shared != layout.blocks[i - 1].shared or keys > OWN_PER_SHARED * len(block.shared))
        if not starts or ends:
            starts.append(i)
            keys = 0
        keys += len(block.own)
    spans = (span for block in layout.blocks for span in (block.query, block.shared, block.own))
    bounds = array("q", (bound for span in spans for bound in (span.start, span.stop)))
    return array("q", (*starts, len(layout.blocks))), bounds
