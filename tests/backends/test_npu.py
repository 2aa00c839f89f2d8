"""Attention by torch_npu's fused call, which a stand-in computes from the call's documentation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from rerankd.backends.npu import attention as npu
from rerankd.backends.ranks import Ranks
from rerankd.backends.torch.attention import sdpa_attention
from rerankd.backends.torch.reference import reference_attention
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import AttentionLayout, causal_layout, kept_layout
from tests.backends.test_attention import IDS, LAYOUTS, packed_groups, tensors, total

CPU = torch.device("cpu")


def fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: None = None,
    padding_mask: None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
) -> tuple[Tensor, ...]:
    """Sequences by the ends of each; a causal one aligned to its end. The other results are of no use here."""
    assert (input_layout, keep_prob, pse, padding_mask) == ("TND", 1.0, None, None)
    assert head_num == query.shape[1]
    assert head_num % key.shape[1] == 0
    assert key.shape == value.shape
    assert all(x.is_contiguous() for x in (query, key, value))
    assert isinstance(actual_seq_qlen, list)
    assert isinstance(actual_seq_kvlen, list)
    assert (actual_seq_qlen[-1], actual_seq_kvlen[-1]) == (len(query), len(key))
    if sparse_mode == 3:
        assert atten_mask is not None
        assert torch.equal(atten_mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    else:
        assert (sparse_mode, atten_mask) == (0, None)
    out = torch.full_like(query, float("nan"))
    queries, keys = pairwise([0, *actual_seq_qlen]), pairwise([0, *actual_seq_kvlen])
    for (a, b), (c, d) in zip(queries, keys, strict=True):
        wide = [x[c:d].repeat_interleave(head_num // key.shape[1], 1) for x in (key, value)]
        logits = torch.einsum("qhd,khd->hqk", query[a:b], wide[0]) * scale
        if sparse_mode == 3:
            ahead = torch.arange(d - c)[None, :] > torch.arange(b - a)[:, None] + (d - c) - (b - a)
            logits = logits.masked_fill(ahead, float("-inf"))
        out[a:b] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), wide[1])
    return (out, *[torch.empty(0)] * 6)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def recorded(*arguments: Any, **more: Any) -> tuple[Tensor, ...]:
        made.append(more)
        return fusion_attention(*arguments, **more)

    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu_fusion_attention=recorded))
    return made


@pytest.mark.parametrize("layout_of", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("most", [1 << 16, 20], ids=["one call", "several"])
def test_the_fused_call_agrees_with_the_reference(
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    layout_of: Callable[[list[PackedGroup]], AttentionLayout],
    most: int,
) -> None:
    monkeypatch.setattr(npu, "KEYS", most)
    attention = npu.FusionAttention(CPU)

    @settings(max_examples=15)
    @given(packed_groups())
    def check(groups: list[PackedGroup]) -> None:
        layout = layout_of(groups)
        q, k, v = tensors(layout.query_rows, total(groups), 4, 2, head_dim=16)
        # Keys and values as a GEMM leaves them: side by side, their rows apart.
        k, v = (half.unflatten(1, (2, 16)) for half in torch.cat([k.flatten(1), v.flatten(1)], 1).chunk(2, 1))
        calls.clear()
        expected = reference_attention(q, k, v, layout, 0.3)
        torch.testing.assert_close(attention(q, k, v, layout, 0.3), expected, rtol=1e-5, atol=1e-6)
        assert calls
        assert most > 20 or all(
            call["actual_seq_kvlen"][-1] <= 20 or len(call["actual_seq_kvlen"]) == 1 for call in calls
        )
        assert most == 20 or len(calls) == 1

    check()


def test_keys_that_are_as_many_as_the_rows_between_are_not_taken_for_these(calls: list[Any]) -> None:
    """A kept row of each document: the rows left out are as many as those of the prefix."""
    layout = kept_layout(causal_layout([PackedGroup(Span(0, 2), (Span(2, 8), Span(8, 10)))]), [3, 9])
    q, k, v = tensors(2, 10, 2, 1, 16)
    found = npu.FusionAttention(CPU)(q, k, v, layout, 0.3)
    torch.testing.assert_close(found, reference_attention(q, k, v, layout, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("head_dim", "window", "slopes"), [(8, None, ()), (16, 2, ()), (16, None, (0.5, 0.25))])
def test_what_the_call_has_no_form_for_is_torchs(
    calls: list[Any], head_dim: int, window: int | None, slopes: tuple[float, ...]
) -> None:
    layout = LAYOUTS[0]([PackedGroup(Span(0, 4), (Span(4, 7),))])
    q, k, v = tensors(7, 7, 2, 1, head_dim)
    found = npu.FusionAttention(CPU)(q, k, v, layout, 0.3, window, slopes)
    expected = reference_attention(q, k, v, layout, 0.3, window, slopes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not calls


def test_16_bits_are_fused_and_32_are_torchs(calls: list[Any]) -> None:
    ranks = Ranks()
    fused = npu.npu_backend(CPU, torch.bfloat16, ranks)
    assert isinstance(fused.attention, npu.FusionAttention)
    assert (fused.name, fused.ranks) == ("npu", ranks)
    assert npu.npu_backend(CPU, torch.float32, ranks).attention is sdpa_attention
