"""Every backend against the float32 reference, and the reference against the definition."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rerankd.backends.cpu import runs as runs_module
from rerankd.backends.cpu.rows import Rows, columns, to_dense
from rerankd.backends.cuda import attention as varlen
from rerankd.backends.torch import buckets
from rerankd.backends.torch.attention import Attention, alibi_slopes, sdpa_attention
from rerankd.backends.torch.reference import bias, reference_attention
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import AttentionLayout, causal_layout, kept_layout, separate_layout
from tests.backends.cpu.test_rows import blocked
from tests.backends.cpu.units import UNITS, kernels_by

NEAR = {torch.bfloat16: {"rtol": 0.02, "atol": 0.02}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


@st.composite
def packed_groups(draw: st.DrawFn, longest: int = 7) -> list[PackedGroup]:
    groups, row = [], 0
    for _ in range(draw(st.integers(1, 3))):
        lengths = [draw(st.integers(0, longest - 2)), *draw(st.lists(st.integers(1, longest), min_size=1, max_size=4))]
        spans = []
        for length in lengths:
            spans.append(Span(row, row + length))
            row += length
        groups.append(PackedGroup(spans[0], tuple(spans[1:])))
    return groups


def tensors(rows: int, keys: int, heads: int, kv_heads: int, head_dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, heads, head_dim, generator=generator),
        torch.randn(keys, kv_heads, head_dim, generator=generator),
        torch.randn(keys, kv_heads, head_dim, generator=generator),
    )


def own_attention(
    unit: str, q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float, is_blocked: bool = True
) -> Tensor:
    """By a unit's kernel, with keys and values as a GEMM leaves them: side by side, their rows apart."""
    queries: Rows = q.flatten(1)
    sides: Rows = torch.cat([k.flatten(1), v.flatten(1)], 1)
    if is_blocked:
        queries, sides = blocked(queries), blocked(sides)
    width = sides.shape[1] // 2
    keys, values = columns(sides, slice(width)), columns(sides, slice(width, 2 * width))
    return to_dense(kernels_by(unit).attention(queries, keys, values, q.shape[2], layout, scale))


def visible(layout: AttentionLayout, keys: int, window: int | None = None) -> Tensor:
    """Which of `keys` packed rows each query row sees: bool [query rows, keys]."""
    return bias(layout, keys, window, ())[0].isfinite()


def documents(groups: list[PackedGroup]) -> list[Span]:
    return [suffix for group in groups for suffix in group.suffixes]


def texts(groups: list[PackedGroup]) -> list[Span]:
    return [span for group in groups for span in (group.prefix, *group.suffixes) if len(span)]


def total(groups: list[PackedGroup]) -> int:
    return groups[-1].suffixes[-1].stop


def flash_varlen_on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: varlen.AuxRequest,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """The documented arithmetic of torch's varlen_attn: sequences by cumulative lengths, causal from the end."""
    assert return_aux.lse
    assert window_size in ((-1, -1), (-1, 0))
    assert enable_gqa == (q.shape[1] != k.shape[1])
    out = torch.full_like(q, float("nan"))
    sums = torch.full((q.shape[1], len(q)), float("nan"))
    bounds_q, bounds_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert max_q == max(b - a for a, b in pairwise(bounds_q))
    assert max_k == max(b - a for a, b in pairwise(bounds_k))
    # Keys behind the last sequence are no sequence's.
    assert bounds_q[-1] == len(q)
    assert bounds_k[-1] <= len(k)
    for (a, b), (c, d) in zip(pairwise(bounds_q), pairwise(bounds_k), strict=True):
        keys = k[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1)
        values = v[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1)
        logits = torch.einsum("qhd,khd->hqk", q[a:b], keys) * scale
        if window_size[1] == 0:
            ahead = torch.arange(d - c)[None, :] > torch.arange(b - a)[:, None] + (d - c) - (b - a)
            logits = logits.masked_fill(ahead, float("-inf"))
        out[a:b] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), values)
        sums[:, a:b] = logits.logsumexp(-1)
    return out, sums


def older_flash_varlen_on_cpu(*arguments: Tensor | int, **more: Any) -> tuple[Tensor, Tensor]:
    """The same of torch 2.11, which is not told of fewer key heads, and, if it gave them so, rows before heads."""
    q, k = arguments[0], arguments[1]
    assert isinstance(q, Tensor)
    assert isinstance(k, Tensor)
    out, sums = flash_varlen_on_cpu(*arguments, enable_gqa=q.shape[1] != k.shape[1], **more)  # type: ignore[arg-type]
    return out, sums if sums.shape[0] == sums.shape[1] else sums.T


@pytest.fixture(params=["sdpa", "sdpa-padded", "sdpa-single", "varlen", "varlen of torch 2.11"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    if request.param.startswith("sdpa"):
        # Blocks of any sizes in one bucket; or no two blocks in one.
        if request.param == "sdpa-padded":
            monkeypatch.setattr(buckets, "PADDING", 1000)
        elif request.param == "sdpa-single":
            monkeypatch.setattr(buckets, "ELEMENTS", 0)
        return sdpa_attention
    flash = flash_varlen_on_cpu if request.param == "varlen" else older_flash_varlen_on_cpu
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", flash)
    return varlen.varlen_attention


LAYOUTS: list[Callable[[list[PackedGroup]], AttentionLayout]] = [
    causal_layout,
    lambda groups: separate_layout(texts(groups)),
    lambda groups: kept_layout(causal_layout(groups), [span.stop - 1 for span in documents(groups)]),
    lambda groups: kept_layout(separate_layout(documents(groups)), [span.start for span in documents(groups)]),
    lambda groups: separate_layout(texts(groups), unseen={span: len(span) // 2 for span in texts(groups)}),
]
IDS = ["causal", "separate", "pruned-causal", "pruned-separate", "unseen"]


@pytest.mark.parametrize("layout_of", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_backends_agree_with_the_reference(
    backend: Attention, layout_of: Callable[[list[PackedGroup]], AttentionLayout], heads: tuple[int, int]
) -> None:
    @settings(max_examples=25)
    @given(packed_groups())
    def check(groups: list[PackedGroup]) -> None:
        layout = layout_of(groups)
        q, k, v = tensors(layout.query_rows, total(groups), *heads)
        expected = reference_attention(q, k, v, layout, 0.3)
        torch.testing.assert_close(backend(q, k, v, layout, 0.3), expected, rtol=1e-5, atol=1e-6)

    check()


@pytest.mark.parametrize("layout_of", LAYOUTS[:4], ids=IDS[:4])
@pytest.mark.parametrize("window", [None, 0, 2, 100])
@pytest.mark.parametrize("slopes", [(), (0.5, 0.25)])
def test_windows_and_alibi_agree_with_the_reference(
    backend: Attention,
    layout_of: Callable[[list[PackedGroup]], AttentionLayout],
    window: int | None,
    slopes: tuple[float, ...],
) -> None:
    @settings(max_examples=10)
    @given(packed_groups())
    def check(groups: list[PackedGroup]) -> None:
        layout = layout_of(groups)
        q, k, v = tensors(layout.query_rows, total(groups), 2, 1)
        expected = reference_attention(q, k, v, layout, 0.3, window, slopes)
        torch.testing.assert_close(backend(q, k, v, layout, 0.3, window, slopes), expected, rtol=1e-5, atol=1e-6)

    check()


@given(packed_groups(), st.integers(0, 4), st.data())
def test_any_kept_rows_see_what_they_saw(groups: list[PackedGroup], window: int, data: st.DataObject) -> None:
    spans = [span for group in groups for span in (group.prefix, *group.suffixes) if len(span)]
    for layout in (causal_layout(groups), separate_layout(spans)):
        rows = sorted(data.draw(st.sets(st.integers(0, total(groups) - 1), min_size=1)))
        for seen in (None, window):
            whole = visible(layout, total(groups), seen)
            assert torch.equal(visible(kept_layout(layout, rows), total(groups), seen), whole[rows])


@pytest.mark.parametrize(
    ("heads", "expected"),
    [(1, [2**-8]), (4, [2**-2, 2**-4, 2**-6, 2**-8]), (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])],
)
def test_alibi_slopes_are_the_published_ones(heads: int, expected: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx(expected)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layout_of", LAYOUTS, ids=IDS)
@pytest.mark.parametrize(
    ("heads", "head_dim", "own_per_shared"), [((4, 2), 64, 0), ((3, 3), 32, 1000), ((2, 1), 128, 1)]
)
def test_own_attention_agrees_with_the_reference(
    unit: str,
    layout_of: Callable[[list[PackedGroup]], AttentionLayout],
    heads: tuple[int, int],
    head_dim: int,
    own_per_shared: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs_module, "OWN_PER_SHARED", own_per_shared)

    @settings(max_examples=12)
    @given(packed_groups(longest=70))
    def check(groups: list[PackedGroup]) -> None:
        layout = layout_of(groups)
        random = tensors(layout.query_rows, total(groups), *heads, head_dim=head_dim)
        q, k, v = (x.to(UNITS[unit].dtype) for x in random)
        scale = 3 * head_dim**-0.5
        expected = to_dense(reference_attention(q, k, v, layout, scale)).float()
        for is_blocked in (True, False):
            attended = own_attention(unit, q, k, v, layout, scale, is_blocked)
            torch.testing.assert_close(attended.float(), expected, **NEAR[q.dtype])

    check()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("loud", ["prefix", "document"])
def test_own_attention_bears_logits_that_lie_far_apart(unit: str, loud: str) -> None:
    group = PackedGroup(Span(0, 40), (Span(40, 75), Span(75, 115)))
    layout = causal_layout([group])
    q, k, v = (x.to(UNITS[unit].dtype) for x in tensors(115, 115, 2, 1, head_dim=32))
    k[:40] *= 60 if loud == "prefix" else 1
    k[40:] *= 60 if loud == "document" else 1
    expected = to_dense(reference_attention(q, k, v, layout, 1.0)).float()
    torch.testing.assert_close(own_attention(unit, q, k, v, layout, 1.0).float(), expected, **NEAR[q.dtype])


@pytest.mark.parametrize("unit", UNITS)
def test_own_attention_keeps_what_is_not_a_number(unit: str) -> None:
    layout = separate_layout([Span(0, 40), Span(40, 80)])
    q, k, v = (x.to(UNITS[unit].dtype) for x in tensors(80, 80, 2, 2, head_dim=32))
    k[3, 0, 5] = float("nan")
    attended = own_attention(unit, q, k, v, layout, 0.2).view(q.shape)
    assert attended[:40, 0].isnan().all()
    assert not attended[40:].isnan().any()
    assert not attended[:, 1].isnan().any()


@pytest.mark.parametrize("unit", UNITS)
def test_own_attention_reads_no_value_behind_a_document(unit: str) -> None:
    # 37 values fill no whole register, and a weight of 0 times a neighbour's NaN would be NaN.
    layout = separate_layout([Span(0, 37), Span(37, 80)])
    q, k, v = (x.to(UNITS[unit].dtype) for x in tensors(80, 80, 2, 2, head_dim=32))
    v[37] = float("nan")
    attended = own_attention(unit, q, k, v, layout, 0.2)
    assert not attended[:37].isnan().any()
    assert attended[37:].isnan().all()


@given(packed_groups())
def test_runs_hold_every_block_once_with_one_shared_span(groups: list[PackedGroup]) -> None:
    layout = causal_layout(groups)
    runs, bounds = (numbers.tolist() for numbers in layout.derived(runs_module.runs_of))
    blocks = [bounds[i : i + 6] for i in range(0, len(bounds), 6)]
    assert (runs[0], runs[-1]) == (0, len(layout.blocks))
    assert all(start < stop for start, stop in pairwise(runs))
    for start, stop in pairwise(runs):
        assert len({tuple(block[2:4]) for block in blocks[start:stop]}) == 1
    assert [Span(*block[:2]) for block in blocks] == [block.query for block in layout.blocks]


@given(packed_groups())
def test_a_decoder_row_sees_its_prefix_and_its_own_past(groups: list[PackedGroup]) -> None:
    seen = visible(causal_layout(groups), total(groups))
    for group in groups:
        for span in (group.prefix, *group.suffixes):
            for row in range(span.start, span.stop):
                expected = set(range(span.start, row + 1)) | set(
                    range(group.prefix.start, min(row + 1, group.prefix.stop))
                )
                assert set(seen[row].nonzero()[:, 0].tolist()) == expected


@given(packed_groups())
def test_a_pruned_row_sees_what_the_last_row_of_its_document_saw(groups: list[PackedGroup]) -> None:
    full = causal_layout(groups)
    spans = documents(groups)
    rows = [span.stop - 1 for span in spans]
    assert torch.equal(visible(kept_layout(full, rows), total(groups)), visible(full, total(groups))[rows])


def test_reference_is_plain_softmax_attention() -> None:
    q, k, v = tensors(5, 5, 2, 2)
    layout = separate_layout([Span(0, 5)])
    expected = torch.einsum("hqk,khd->qhd", (torch.einsum("qhd,khd->hqk", q, k) * 0.5).softmax(-1), v)
    torch.testing.assert_close(reference_attention(q, k, v, layout, 0.5), expected.flatten(1))


@given(packed_groups())
def test_buckets_hold_every_block_once(groups: list[PackedGroup]) -> None:
    layout = causal_layout(groups)
    held = [block for bucket in layout.derived(buckets.in_buckets) for block in bucket.blocks]
    assert sorted(held, key=lambda block: block.query.start) == list(layout.blocks)


def test_documents_of_one_length_are_one_call_without_a_copy() -> None:
    layout = separate_layout([Span(i, i + 5) for i in range(0, 40, 5)])
    (bucket,) = layout.derived(buckets.in_buckets)
    assert bucket.query_rows == bucket.key_rows == slice(0, 40)
    assert bucket.mask(torch.zeros(1), None, ()) is None


def test_padding_is_bounded() -> None:
    lengths = [100, 101, 105, 200, 210, 400]
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row, row + length))
        row += length
    for bucket in separate_layout(spans).derived(buckets.in_buckets):
        assert bucket.queries * bucket.keys <= 1.25 * min(len(b.query) * b.keys for b in bucket.blocks)


def test_copies_of_a_long_prefix_are_bounded() -> None:
    documents = [Span(40_000 + i, 40_001 + i) for i in range(500)]
    layout = causal_layout([PackedGroup(Span(0, 40_000), tuple(documents))])
    found = layout.derived(buckets.in_buckets)
    assert sum(len(bucket.blocks) for bucket in found) == 501
    assert max(len(bucket.blocks) * bucket.keys for bucket in found) <= buckets.GATHERED
