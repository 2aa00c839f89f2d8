"""From images and videos to features of a language model, in bounded packs, with a cache of encoded visuals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rerankd.core import Visual
from rerankd.models.grids import Grid

PATCHES_AT_ONCE = 16384
"""Patches that go through the vision tower at a time, unless one image has more: bounds the memory of its layers."""
MEMORY_BYTES = 256 << 20
"""Encoded images and videos that are kept for other documents and batches."""


class Tower(Protocol):
    """A vision tower; `merge` x `merge` neighbouring patches become one token."""

    @property
    def merge(self) -> int: ...

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Several images and videos, packed: [1 + deepstack layers, tokens, hidden] of [patches, values]."""
        ...


class VisualEncoder:
    """The vision tower, with a bounded cache of its results, by content.

    The cache changes no result. With it, a query's image is encoded once for all batches of its documents, and a
    image in several documents is encoded once.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.merge = tower.merge
        self._memory: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, visuals: Sequence[Visual]) -> Tensor:
        """[1 + deepstack layers, tokens of all, hidden]; see `Tower`."""
        encoded = {visual.digest: self._memory.get(visual.digest) for visual in visuals}
        missing = {visual.digest: visual for visual in visuals if encoded[visual.digest] is None}
        for pack in _packs(list(missing.values())):
            features = self._encode(torch.cat([visual.pixel_values() for visual in pack]), [v.grid for v in pack])
            sizes = [_patches(visual) // self.merge**2 for visual in pack]
            encoded |= zip((v.digest for v in pack), torch.split(features, sizes, dim=1), strict=True)
        ordered = [feature for visual in visuals if (feature := encoded[visual.digest]) is not None]
        self._remember({visual.digest: feature for visual, feature in zip(visuals, ordered, strict=True)})
        return torch.cat(ordered, dim=1)

    def _encode(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """A long video goes through the tower in parts: its steps in time know nothing of each other there."""
        time, height, width = grids[0]
        steps = max(1, PATCHES_AT_ONCE // (height * width))
        if len(grids) > 1 or time <= steps:
            return self.tower(pixels, grids)
        parts = torch.split(pixels, steps * height * width)
        encoded = [self.tower(part, [(len(part) // (height * width), height, width)]) for part in parts]
        return torch.cat(encoded, dim=1)

    def _remember(self, features: dict[bytes, Tensor]) -> None:
        for digest, feature in features.items():
            # A clone: a slice would keep the features of the whole pack in memory.
            self._memory.setdefault(digest, feature.clone())
            self._memory.move_to_end(digest)
        while sum(feature.nbytes for feature in self._memory.values()) > MEMORY_BYTES:
            self._memory.popitem(last=False)


def _patches(visual: Visual) -> int:
    time, height, width = visual.grid
    return time * height * width


def _packs(visuals: Sequence[Visual]) -> Iterator[list[Visual]]:
    """Consecutive visuals of at most PATCHES_AT_ONCE patches in all; a larger one by itself."""
    pack: list[Visual] = []
    for visual in visuals:
        if pack and sum(map(_patches, [*pack, visual])) > PATCHES_AT_ONCE:
            yield pack
            pack = []
        pack.append(visual)
    if pack:
        yield pack
