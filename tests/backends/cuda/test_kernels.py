"""Kernels in Triton's interpreter against plain tensors. The interpreter multiplies no bfloat16, so float16 stands for
it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cuda import flash, float8, kernels
from rerankd.backends.cuda.float8 import Operand
from rerankd.backends.cuda.linear import Fp8Linear, PlainLinear, linear
from rerankd.backends.cuda.tiles import HostTiles
from rerankd.backends.torch.attention import alibi_slopes
from rerankd.backends.torch.reference import reference_attention
from rerankd.backends.torch.transformer import activate, norm, rotated
from rerankd.core import PackedGroup, Span
from rerankd.layers.layout import causal_layout, kept_layout, separate_layout
from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import Activation, Affine, Norm

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
NEAR = {torch.float32: 2e-6, torch.float16: 2e-3}
RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=NEAR[dtype], atol=NEAR[dtype])


@DTYPES
@pytest.mark.parametrize("spec", [RMS, LAYER], ids=["rms", "layer"])
@pytest.mark.parametrize("shape", [(1, 8), (5, 72), (70, 96)])
@pytest.mark.parametrize("has_delta", [True, False])
def test_norms_of_sums(dtype: torch.dtype, spec: Norm, shape: tuple[int, int], has_delta: bool) -> None:
    x, delta = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1) if has_delta else None
    weights = Affine(draw(shape[1], seed=2), draw(shape[1], seed=3) if spec is LAYER else None)
    total = x.float() if delta is None else x.float() + delta.float()

    summed, normed = kernels.add_norm(x, delta, spec, weights, dtype)
    close(summed, total, dtype)
    assert summed.dtype == normed.dtype == dtype
    close(normed, norm(summed.float(), spec, weights), dtype)
    if delta is None:
        assert summed is x

    state, normed = kernels.norm_sum(x, delta, spec, weights, dtype)
    assert state is normed
    close(state, norm(total, spec, weights), dtype)
    state, normed = kernels.norm_sum(x.float(), delta, spec, weights, torch.float16)
    assert (state.dtype, normed.dtype) == (torch.float32, torch.float16)
    close(state, norm(total, spec, weights), torch.float32)
    close(normed, state, torch.float16)


@DTYPES
@pytest.mark.parametrize("spec", [None, RMS, LAYER], ids=["plain", "rms", "layer"])
@pytest.mark.parametrize(("head_dim", "rotary"), [(16, 16), (72, 72), (24, 8), (16, None)])
def test_heads_are_normed_and_rotated_in_place(
    dtype: torch.dtype, spec: Norm | None, head_dim: int, rotary: int | None
) -> None:
    rows, heads = 35, 3
    whole = draw(rows, heads * head_dim + 10, dtype=dtype)
    rotation = None if rotary is None else Rotary.plain(rotary, 100.0).rotation(torch.arange(rows), torch.float32)
    weights = Affine(draw(head_dim, seed=2), draw(head_dim, seed=3) if spec is LAYER else None)
    expected = whole[:, : heads * head_dim].unflatten(1, (heads, head_dim)).float()
    if spec is not None:
        expected = norm(expected, spec, weights)
    if rotation is not None:
        expected = rotated(expected, rotation)
    found = whole.clone()
    kernels.norm_rope(found[:, : heads * head_dim], heads, head_dim, rotation, spec, None if spec is None else weights)
    close(found[:, : heads * head_dim], expected.flatten(1), dtype)
    assert torch.equal(found[:, heads * head_dim :], whole[:, heads * head_dim :])


@DTYPES
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "relu"])
def test_gates(dtype: torch.dtype, activation: Activation) -> None:
    x = draw(37, 2 * 24, dtype=dtype) * 3
    gate, up = x.float().chunk(2, 1)
    close(kernels.gated(x, activation), activate(gate, activation) * up, dtype)


@pytest.mark.parametrize("kind", ["causal", "separate", "pruned"])
@pytest.mark.parametrize(
    ("dtype", "heads", "kv_heads", "head_dim", "window", "biased"),
    [
        (torch.float32, 4, 2, 16, None, False),
        (torch.float16, 2, 2, 24, None, False),
        (torch.float32, 2, 2, 24, 3, False),
        (torch.float32, 4, 2, 16, None, True),
    ],
)
def test_flash_attention(
    dtype: torch.dtype, kind: str, heads: int, kv_heads: int, head_dim: int, window: int | None, biased: bool
) -> None:
    lengths, spans, row = (5, 20, 1, 0, 9, 30), [], 0
    for length in lengths:
        spans.append(Span(row, row + length))
        row += length
    groups = [PackedGroup(spans[0], tuple(spans[1:3])), PackedGroup(spans[3], tuple(spans[4:]))]
    layout = separate_layout([s for s in spans if len(s)]) if kind == "separate" else causal_layout(groups)
    q, k, v = (draw(row, n, head_dim, dtype=dtype, seed=n + i) for i, n in enumerate((heads, kv_heads, kv_heads)))
    if kind == "pruned":
        kept = [spans[1].stop - 1, spans[2].stop - 1, spans[5].stop - 4]
        layout, q = kept_layout(layout, kept), q[kept]
    slopes = alibi_slopes(heads) if biased else ()
    expected = reference_attention(q.float(), k.float(), v.float(), layout, 0.3, window, slopes)
    host = HostTiles.of(layout, 16)
    tiles = host.on(torch.from_numpy(host.values))
    table = torch.tensor(slopes) if biased else None
    # Keys and values as a GEMM leaves them: side by side, their rows apart.
    both = torch.cat([k.flatten(1), v.flatten(1)], 1)
    k, v = (half.unflatten(1, (kv_heads, head_dim)) for half in both.chunk(2, 1))
    close(flash.launch(q, k, v, tiles, 0.3, window, table, keys=16, warps=4, stages=2), expected, dtype)
    close(flash.flash_attention(q, k, v, tiles, 0.3, window, table), expected, dtype)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "rotary", "norms"),
    [
        (torch.float32, 16, 16, True),
        (torch.float16, 16, 16, True),
        (torch.float32, 24, 8, True),
        (torch.float32, 24, 24, False),
        (torch.float32, 16, None, True),
    ],
)
def test_queries_are_normed_and_rotated_as_attention_reads_them(
    dtype: torch.dtype, head_dim: int, rotary: int | None, norms: bool
) -> None:
    layout = causal_layout([PackedGroup(Span(0, 5), (Span(5, 25), Span(25, 26)))])
    wide, k, v = (draw(26, n, head_dim, dtype=dtype, seed=n) for n in (6, 2, 2))
    # As a GEMM leaves them: keys and values lie behind the queries of a row.
    q = wide[:, :4]
    rotation = None if rotary is None else Rotary.plain(rotary, 100.0).rotation(torch.arange(26) + 3, torch.float32)
    weight = 1 + draw(head_dim, seed=7) / 3
    expected = norm(q.float(), RMS, Affine(weight)) if norms else q.float()
    if rotation is not None:
        expected = rotated(expected, rotation)
    norm_rope = flash.NormRope(rotation, weight, RMS.eps) if norms else flash.NormRope(rotation)
    host = HostTiles.of(layout, 16)
    found = flash.flash_attention(q, k, v, host.on(torch.from_numpy(host.values)), 0.3, None, None, norm_rope)
    close(found, reference_attention(expected.to(dtype), k, v, layout, 0.3), dtype)
    assert torch.equal(wide, draw(26, 6, head_dim, dtype=dtype, seed=6))


def test_attention_bears_logits_that_lie_far_apart() -> None:
    layout = causal_layout([PackedGroup(Span(0, 20), (Span(20, 40), Span(40, 45)))])
    for loud in (slice(0, 20), slice(20, 45)):
        q, k, v = (draw(45, 2, 16, seed=i) for i in range(3))
        k[loud] *= 100
        host = HostTiles.of(layout, 16)
        found = flash.launch(q, k, v, host.on(torch.from_numpy(host.values)), 1.0, None, None, 16, 4, 2)
        expected = reference_attention(q, k, v, layout, 1.0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_are_quantised_by_their_largest_value() -> None:
    # Values that float8 holds exactly: the interpreter does not round as a device does.
    held = torch.arange(-8, 9) * 32.0
    rows = torch.stack([held.roll(i) for i in range(3)])
    rows[:, 0] = torch.tensor([448.0, -448.0, 448.0])
    x = rows * torch.tensor([[1.0], [0.25], [8.0]])
    quantised, scale = float8.quantised_rows(x)
    assert quantised.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(scale[:, 0], torch.tensor([1.0, 0.25, 8.0]))
    torch.testing.assert_close(quantised.float(), rows)
    zeros, scale = float8.quantised_rows(torch.zeros(2, 16))
    assert not zeros.float().any()
    assert scale.isfinite().all()


def test_float8_layers_multiply_what_was_quantised() -> None:
    weight = torch.tensor([[1.0, -2.0, 4.0, 0.5] * 8, [448.0, 2.0, 2.0, 0.0] * 8] * 16)
    bias = torch.arange(32.0).bfloat16()
    x = torch.tensor([[448.0, 1.0, 2.0, -1.0] * 8, [-0.5, 448.0, 1.0, 1.0] * 8, [1.0, 1.0, 0.0, 448.0] * 8]).bfloat16()
    layer = linear(Affine(weight, bias), fp8=True)
    assert isinstance(layer, Fp8Linear)
    exact = layer.weight.float() * layer.scale
    found = layer(Operand(x))
    torch.testing.assert_close(found.float(), F.linear(x.float(), exact, bias.float()), rtol=0.01, atol=0.01)
    assert torch.equal(layer(Operand(None, float8.quantised_rows(x))), found)
    some = layer.rows(4, 20)
    torch.testing.assert_close(some(Operand(x)).float(), found[:, 4:20].float(), rtol=0.01, atol=0.01)
    # Sizes that a float8 GEMM does not take stay in the dtype of their weights.
    assert isinstance(linear(Affine(draw(20, 32)), fp8=True), PlainLinear)


def stands_for(codes: float8.Codes, expected: Tensor) -> None:
    """Each row by its own scale, rounded to four digits of 2."""
    largest = expected.abs().amax(1, keepdim=True)
    torch.testing.assert_close(codes.scale, largest / 448, rtol=1e-5, atol=1e-12)
    error = (codes.values.float() * codes.scale - expected).abs()
    assert (error <= expected.abs() / 15.9 + codes.scale / 512).all()


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("spec", [RMS, LAYER], ids=["rms", "layer"])
@pytest.mark.parametrize("is_read", [True, False], ids=["plain too", "codes alone"])
def test_norms_are_quantised_as_they_are_computed(spec: Norm, is_read: bool) -> None:
    x, delta = draw(37, 96) * 3, draw(37, 96, seed=1)
    weights = Affine(draw(96, seed=2), draw(96, seed=3) if spec is LAYER else None)
    summed, normed = float8.add_norm_quantised(x, delta, spec, weights, torch.float16 if is_read else None)
    close(summed, x + delta, torch.float32)
    expected = norm(x + delta, spec, weights)
    assert normed.codes is not None
    stands_for(normed.codes, expected)
    assert (normed.plain is not None) == is_read
    if normed.plain is not None:
        close(normed.plain, expected, torch.float16)
    some = normed.rows(torch.tensor([3, 30]))
    assert some.codes is not None
    stands_for(some.codes, expected[[3, 30]])
    assert float8.add_norm_quantised(x, None, spec, weights, None)[0] is x


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
def test_gates_are_quantised_as_they_are_computed(activation: Activation) -> None:
    x = draw(37, 2 * 24) * 3
    gate, up = x.chunk(2, 1)
    stands_for(float8.gated_quantised(x, activation), activate(gate, activation) * up)
