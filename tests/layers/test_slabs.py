"""Slabs: attention in slabs, with keys and values in one room that is reused, is attention over all rows at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd.core import PackedGroup, Span
from rerankd.layers.attention import AttentionLayout, reference_attention
from rerankd.layers.attention.layout import causal_layout, pruned_layout, separate_layout
from rerankd.layers.attention.slabs import in_slabs
from tests.layers.test_attention import packed_groups, tensors

GARBAGE = 1e3
"""Where the room has no key or value of this slab: shows where it is read, and is no NaN, which a weight of 0 keeps."""


def attention_in_slabs(layout: AttentionLayout, rows: int | None, keys: int) -> torch.Tensor:
    """What a layer does: each slab's keys and values behind those that the room still has of the slab before."""
    q, k, v = tensors(layout.query_rows, keys, heads=2, kv_heads=1)
    slabs = in_slabs(layout, rows)
    room = torch.full((2, max(slab.key_count for slab in slabs), *k.shape[1:]), GARBAGE)
    parts = []
    for slab in slabs:
        new = slice(slab.kept, slab.key_count)
        room[0, new], room[1, new] = k[slab.keys], v[slab.keys]
        parts.append(reference_attention(q[slab.queries], room[0], room[1], slab.layout, 0.3))
        room[:, slab.key_count :] = GARBAGE
    return torch.cat(parts)


@given(packed_groups(), st.integers(1, 40))
def test_slabs_attend_as_the_whole_layout_does(groups: list[PackedGroup], rows: int) -> None:
    spans = [span for group in groups for span in group.suffixes]
    keys = spans[-1].stop
    causal = causal_layout(groups)
    alone = [Span(0, 3), *(Span(span.start + 3, span.stop + 3) for span in (Span(0, 2), Span(2, 9)))]
    for layout, count in (
        (causal, keys),
        (pruned_layout(causal, spans), keys),
        (separate_layout(alone), 12),
        (pruned_layout(separate_layout(alone), alone), 12),
    ):
        q, k, v = tensors(layout.query_rows, count, heads=2, kv_heads=1)
        whole = reference_attention(q, k, v, layout, 0.3)
        torch.testing.assert_close(attention_in_slabs(layout, rows, count), whole, rtol=1e-5, atol=1e-5)
        assert torch.equal(attention_in_slabs(layout, None, count), whole)


@given(packed_groups(), st.integers(1, 40))
def test_slabs_cover_every_row_once_and_are_no_larger_than_asked(groups: list[PackedGroup], rows: int) -> None:
    layout = causal_layout(groups)
    slabs = in_slabs(layout, rows)
    assert [row for slab in slabs for row in range(slab.keys.start, slab.keys.stop)] == list(range(layout.query_rows))
    assert all(slab.keys == slab.queries for slab in slabs)
    assert all(slab.keys.stop - slab.keys.start <= rows for slab in slabs if len(slab.layout.blocks) > 1)


def test_a_prefix_is_kept_from_slab_to_slab_and_no_longer_than_its_documents_last() -> None:
    groups = [
        PackedGroup(Span(0, 4), (Span(4, 6),)),
        PackedGroup(Span(6, 11), tuple(Span(start, start + 3) for start in range(11, 23, 3))),
        PackedGroup(Span(23, 25), (Span(25, 27),)),
    ]
    slabs = in_slabs(causal_layout(groups), 12)
    # The second group does not fit behind the first, so it begins a slab; the third shares the last of its slabs.
    assert [(slab.keys.start, slab.keys.stop, slab.kept) for slab in slabs] == [(0, 6, 0), (6, 17, 0), (17, 27, 5)]
    assert slabs[2].layout.blocks[0].shared == Span(0, 5)
    assert slabs[2].layout.blocks[-1].shared == Span(11, 13)


@pytest.mark.parametrize("rows", [None, 5])
def test_no_documents_are_no_slabs(rows: int | None) -> None:
    assert in_slabs(separate_layout([]), rows) == ()
