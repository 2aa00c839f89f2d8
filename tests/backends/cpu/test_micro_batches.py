"""Attention in micro-batches, with one reused buffer of keys and values, is attention over all rows at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerankd.backends.cpu.micro_batches import in_micro_batches
from rerankd.backends.torch.reference import reference_attention
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import AttentionLayout, causal_layout, kept_layout, separate_layout
from tests.backends.test_attention import packed_groups, tensors

GARBAGE = 1e3
"""Where the buffer has no key or value of this micro-batch: an error shows, and NaN would survive a weight of 0."""


def attention_in_micro_batches(layout: AttentionLayout, rows: int | None, keys: int) -> torch.Tensor:
    """Attention as a layer computes it: keys and values of each micro-batch behind those kept from the one before."""
    q, k, v = tensors(layout.query_rows, keys, heads=2, kv_heads=1)
    batches = in_micro_batches(layout, rows)
    buffer = torch.full((2, max(batch.key_count for batch in batches), *k.shape[1:]), GARBAGE)
    parts = []
    for batch in batches:
        new = slice(batch.kept, batch.key_count)
        buffer[0, new], buffer[1, new] = k[batch.keys], v[batch.keys]
        parts.append(reference_attention(q[batch.queries], buffer[0], buffer[1], batch.layout, 0.3))
        buffer[:, batch.key_count :] = GARBAGE
    return torch.cat(parts)


@given(packed_groups(), st.integers(1, 40))
def test_micro_batches_attend_as_the_whole_layout_does(groups: list[PackedGroup], rows: int) -> None:
    spans = [span for group in groups for span in group.suffixes]
    keys = spans[-1].stop
    causal = causal_layout(groups)
    alone = [Span(0, 3), *(Span(span.start + 3, span.stop + 3) for span in (Span(0, 2), Span(2, 9)))]
    for layout, count in (
        (causal, keys),
        (kept_layout(causal, [span.stop - 1 for span in spans]), keys),
        (kept_layout(causal, list(range(0, keys, 2))), keys),
        (separate_layout(alone), 12),
        (separate_layout(alone, unseen={alone[0]: 2, alone[1]: 1, alone[2]: 4}), 12),
        (kept_layout(separate_layout(alone), [span.start for span in alone]), 12),
    ):
        q, k, v = tensors(layout.query_rows, count, heads=2, kv_heads=1)
        whole = reference_attention(q, k, v, layout, 0.3)
        torch.testing.assert_close(attention_in_micro_batches(layout, rows, count), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(attention_in_micro_batches(layout, None, count), whole, rtol=1e-5, atol=1e-5)


@given(packed_groups(), st.integers(1, 40))
def test_micro_batches_cover_every_row_once_and_are_no_larger_than_asked(groups: list[PackedGroup], rows: int) -> None:
    layout = causal_layout(groups)
    batches = in_micro_batches(layout, rows)
    assert [row for batch in batches for row in range(batch.keys.start, batch.keys.stop)] == list(
        range(layout.query_rows)
    )
    assert all(batch.keys == batch.queries for batch in batches)
    assert all(batch.keys.stop - batch.keys.start <= rows for batch in batches if len(batch.layout.blocks) > 1)


def test_a_prefix_is_kept_from_micro_batch_to_micro_batch_and_no_longer_than_its_documents_last() -> None:
    groups = [
        PackedGroup(Span(0, 4), (Span(4, 6),)),
        PackedGroup(Span(6, 11), tuple(Span(start, start + 3) for start in range(11, 23, 3))),
        PackedGroup(Span(23, 25), (Span(25, 27),)),
    ]
    batches = in_micro_batches(causal_layout(groups), 12)
    # The second group does not fit behind the first, so it begins a batch; the third shares the last of its batches.
    assert [(batch.keys.start, batch.keys.stop, batch.kept) for batch in batches] == [
        (0, 6, 0),
        (6, 17, 0),
        (17, 27, 5),
    ]
    assert batches[2].layout.blocks[0].shared == Span(0, 5)
    assert batches[2].layout.blocks[-1].shared == Span(11, 13)


@pytest.mark.parametrize("rows", [None, 5])
def test_no_documents_are_no_micro_batches(rows: int | None) -> None:
    assert in_micro_batches(separate_layout([]), rows) == ()
