"""The packer: every token, position and type where it belongs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd.core import PromptGroup, Segment
from rerankd.engine.packing import pack

CPU = torch.device("cpu")

segments = st.lists(st.integers(0, 99), min_size=1, max_size=6)


@st.composite
def prompt_groups(draw: st.DrawFn, typed: bool = False) -> PromptGroup:
    def segment(ids: list[int]) -> Segment:
        return Segment(ids, [i % 2 for i in range(len(ids))] if typed else [])

    prefix = segment(draw(st.lists(st.integers(0, 99), max_size=5)))
    suffixes = tuple(segment(ids) for ids in draw(st.lists(segments, min_size=1, max_size=6)))
    return PromptGroup(prefix, suffixes, (False,) * len(suffixes))


@given(st.lists(prompt_groups(), min_size=1, max_size=4), st.booleans())
def test_spans_hold_the_tokens_and_positions_of_their_segments(groups: list[PromptGroup], shares_prefix: bool) -> None:
    batch = pack(groups, shares_prefix, CPU)
    end = 0
    for group, packed in zip(groups, batch.groups, strict=True):
        for segment, span, first in [
            (group.prefix, packed.prefix, 0),
            *(
                (suffix, span, len(group.prefix) if shares_prefix else 0)
                for suffix, span in zip(group.suffixes, packed.suffixes, strict=True)
            ),
        ]:
            assert span.start == end
            end = span.stop
            assert batch.token_ids[span.start : span.stop].tolist() == segment.token_ids
            assert batch.positions[span.start : span.stop].tolist() == list(range(first, first + len(segment)))
    assert end == len(batch.token_ids) == len(batch.positions)
    assert batch.token_types is None


@given(st.lists(prompt_groups(typed=True), min_size=1, max_size=3), prompt_groups())
def test_token_types_lie_beside_their_tokens(groups: list[PromptGroup], untyped: PromptGroup) -> None:
    laid = [*groups, untyped]
    batch = pack(laid, False, CPU)
    expected = [
        kind
        for group in laid
        for segment in (group.prefix, *group.suffixes)
        for kind in segment.token_types or [0] * len(segment)
    ]
    if batch.token_types is None:
        assert not any(expected)
    else:
        assert batch.token_types.tolist() == expected
