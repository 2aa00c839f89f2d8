"""Prompts of texts, pictures and videos against the authors' own stack (`media/golden/make_prompts.py` says how)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rerankd.core import PromptGroup, Segment
from rerankd.engine.packing import pack
from rerankd.models.grids import visual_positions
from tests import vision
from tests.pairs import Pair, pairs

GOLDEN = vision.golden_prompts()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return pairs(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def groups(qwen3_vl_checkpoint: Path, cases: dict[str, Pair]) -> list[PromptGroup]:
    return vision.groups(qwen3_vl_checkpoint, cases.values())


@pytest.fixture(scope="module")
def prompts(groups: list[PromptGroup]) -> list[tuple[Segment, Segment]]:
    """What each pair shares with the others of its query, and its own part."""
    return [(group.prefix, suffix) for group in groups for suffix in group.suffixes]


def test_there_is_a_golden_prompt_for_every_pair(cases: dict[str, Pair]) -> None:
    assert cases.keys() == GOLDEN.keys()


def test_token_ids(cases: dict[str, Pair], prompts: list[tuple[Segment, Segment]]) -> None:
    for name, (prefix, suffix) in zip(cases, prompts, strict=True):
        assert prefix.token_ids + suffix.token_ids == GOLDEN[name]["ids"].tolist(), name


def test_grids(cases: dict[str, Pair], prompts: list[tuple[Segment, Segment]]) -> None:
    for name, (prefix, suffix) in zip(cases, prompts, strict=True):
        visuals = [*prefix.visuals, *suffix.visuals]
        for kind, is_video in (("image", False), ("video", True)):
            grids = [list(visual.grid) for visual in visuals if bool(visual.seconds) == is_video]
            assert grids == GOLDEN[name].get(f"{kind}_grid_thw", np.empty(0)).tolist(), name


def test_positions_of_packed_tokens(cases: dict[str, Pair], groups: list[PromptGroup]) -> None:
    batch = pack(groups, True, torch.device("cpu"))
    pads = torch.tensor([vision.IMAGE, vision.VIDEO])
    positions = visual_positions(batch, torch.isin(batch.token_ids, pads).tolist(), merge=2)
    spans = [(group.prefix, suffix) for group in batch.groups for suffix in group.suffixes]
    for name, (prefix, suffix) in zip(cases, spans, strict=True):
        own = torch.cat([positions[:, span.start : span.stop] for span in (prefix, suffix)], dim=1)
        assert own.tolist() == GOLDEN[name]["positions"].tolist(), name


def test_what_a_query_shows_is_shared(groups: list[PromptGroup]) -> None:
    assert [len(group.prefix.visuals) for group in groups] == [0, 1, 1, 2, 1, 0]
