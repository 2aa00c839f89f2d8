"""Batches of random tokens of wanted lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from benchmarks.gpu.shapes import VOCABULARY
from rerankd.core import PackedBatch, PromptGroup, Segment
from rerankd.engine.packing import pack
from rerankd.models.base import Model

PREFIX, SUFFIX = 95, 170
"""Tokens of the pair of 265 that the reference documents measure: template, instruction and query; the document and the
template's tail."""


def uniform(documents: int) -> list[int]:
    return [SUFFIX] * documents


def mixed(documents: int, seed: int = 0, most: int = 600) -> list[int]:
    """30 to 600 tokens, half of them under 140: passages as uneven as they come."""
    generator = random.Random(seed)
    return [min(most, max(30, round(generator.lognormvariate(4.94, 0.7)))) for _ in range(documents)]


def group(shares_prefix: bool, suffixes: Sequence[int], seed: int = 0, prefix_tokens: int = PREFIX) -> PromptGroup:
    """One request. Where nothing is shared, each document's prompt holds the prefix's tokens too."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        found: list[int] = torch.randint(10, VOCABULARY, (count,), generator=generator).tolist()
        return found

    prefix = ids(prefix_tokens)
    own = [ids(length) for length in suffixes]
    segments = [Segment(one) for one in own] if shares_prefix else [Segment(prefix + one) for one in own]
    return PromptGroup(Segment(prefix if shares_prefix else []), tuple(segments), (False,) * len(own))


def tokens(groups: Sequence[PromptGroup]) -> int:
    """Tokens that the model computes."""
    return sum(len(one.prefix) + sum(map(len, one.suffixes)) for one in groups)


def packed(model: Model, groups: Sequence[PromptGroup], device: torch.device) -> PackedBatch:
    return pack(groups, model.shares_prefix, device)
