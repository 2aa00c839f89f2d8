"""Linear layers against their definition: dense, packed by oneDNN, and by the kernels, in bfloat16 and in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rerankd.backends.cpu.linear import (
    DenseLinear,
    Linear,
    PackedLinear,
    int8_linear,
    int8_weight,
    int16_linear,
    kernel_linear,
)
from rerankd.backends.cpu.rows import to_dense
from rerankd.backends.torch.transformer import activate
from rerankd.layers.spec import Activation
from tests.backends.cpu.test_rows import blocked
from tests.backends.cpu.units import UNITS, UNITS_WITH_HALVES, Codes, codes, kernels_by, threads

Make = Callable[[Tensor, Tensor | None], Linear]


def by(unit: str, make: Callable[..., Linear]) -> Make:
    """`make` with the kernels of a unit, which are looked for when a test runs."""
    return lambda weight, bias: make(weight, bias, kernels_by(unit))


own_linear = partial(kernel_linear, otherwise=DenseLinear)
INT8 = [
    pytest.param((torch.float32, partial(int8_linear, kernels=None), Codes()), id="float32"),
    pytest.param((torch.bfloat16, partial(int8_linear, kernels=None), Codes()), id="bfloat16"),
    *(pytest.param((unit.dtype, by(name, int8_linear), codes(name)), id=name) for name, unit in UNITS.items()),
]
INT16 = [
    pytest.param((torch.float32, by(name, int16_linear), Codes()), id=f"int16-{name}") for name in UNITS_WITH_HALVES
]


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def by_definition(x: Tensor, weight: Tensor, bias: Tensor | None, largest: Codes) -> Tensor:
    """Rows over their range, channels scaled to their magnitude, rounded; multiplied exactly in float64."""
    x, weight = x.double(), weight.double()
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    steps = (high - low) / largest.row
    zeros = (-low / steps).round()
    row = ((x / steps).round() + zeros).clamp(0, largest.row)
    channels = weight.abs().amax(1, keepdim=True) / largest.weight
    if largest.four:
        fours = torch.stack(
            [weight[:, [i, i + 1, i + 4, i + 5]] for j in range(0, weight.shape[1], 8) for i in (j, j + 2)]
        )
        most = torch.maximum(fours.clamp(min=0).sum(2), (-fours).clamp(min=0).sum(2)).amax(0)[:, None]
        channels = torch.maximum(channels, most / (largest.four - 2))
    product = (row - zeros) @ (weight / channels).round().T
    return product * steps * channels.T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("backend", [*INT8, *INT16])
def test_nan_and_inf_spoil_their_own_row_only_in_8_bits(
    backend: tuple[torch.dtype, Make, Codes],
) -> None:
    dtype, make, _ = backend
    x = matrix(19, 64, 1).to(dtype)
    x[3, 40], x[11, 0], x[18, 63] = float("nan"), -float("nan"), float("inf")
    y = make(matrix(32, 64, 2).to(dtype), None)(x)
    lost = torch.zeros(19, dtype=torch.bool)
    lost[[3, 11, 18]] = True
    assert torch.equal(~y.isfinite().any(1), lost)


@pytest.mark.parametrize("backend", INT8)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 16, 17, 33, 300])
def test_int8_is_the_gemm_defined(backend: tuple[torch.dtype, Make, Codes], biased: bool, rows: int) -> None:
    dtype, make, largest = backend
    # Rows and columns of unlike sizes, and a range that is lopsided, so that a wrong zero or scale shows.
    x = ((matrix(rows, 192, 1) + 1.5) * torch.arange(1, rows + 1)[:, None]).to(dtype)
    weight = (matrix(96, 192, 2) * torch.linspace(0.1, 3, 96)[:, None]).to(dtype)
    bias = (matrix(1, 96, 3)[0] * 50).to(dtype) if biased else None
    result = make(weight, bias)(x)
    assert result.dtype == dtype
    expected = by_definition(x, weight, bias, largest)
    # A value that lies between two codes may fall to either: one step times one weight.
    steps = (x.double().amax(1) - x.double().amin(1).clamp(max=0))[:, None] / largest.row
    slack = steps * weight.double().abs().amax(1) * 3
    rounding = expected.abs() * (1e-5 if dtype == torch.float32 else 2**-8)
    assert ((result.double() - expected).abs() <= slack + rounding + 1e-4).all()
    assert (result.double() - expected).abs().mean() <= 0.25 * slack.mean() + rounding.mean()


@pytest.mark.parametrize("backend", INT8)
def test_int8_is_near_float32(backend: tuple[torch.dtype, Make, Codes]) -> None:
    dtype, make, _ = backend
    x, weight = matrix(40, 256, 1).to(dtype), matrix(64, 256, 2).to(dtype)
    exact = F.linear(x.float(), weight.float())
    assert (make(weight, None)(x).float() - exact).abs().max() < 0.025 * exact.abs().max()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "heavy", "halves", "sparse"]))
def test_any_four_weights_that_are_added_in_16_bits_fit(seed: int, kind: str) -> None:
    """And none is smaller than it has to be: one channel's sum, or its largest weight, is at the bound."""
    weight = matrix(8, 64, seed)
    if kind == "heavy":
        weight = weight**5
    elif kind == "halves":  # as many as can be lie half-way between two codes
        weight = (weight * 20).round() + 0.5
    elif kind == "sparse":
        weight = weight * (weight > 1.5)
    codes, scales = int8_weight(weight, 127, 128)
    fours = torch.stack([codes[:, [i, i + 1, i + 4, i + 5]].int() for j in range(0, 64, 8) for i in (j, j + 2)])
    sums = torch.maximum(fours.clamp(min=0).sum(2), (-fours).clamp(min=0).sum(2)).amax(0)
    assert sums.max() <= 128
    assert ((sums >= 124) | (codes.abs().amax(1) == 127) | (codes.abs().amax(1) == 0)).all()
    torch.testing.assert_close(codes * scales[:, None], weight, rtol=0, atol=0.501 * scales.max().item())


def test_weights_that_fit_by_fours_are_nearer_than_weights_of_7_bits() -> None:
    weight = matrix(256, 1536, 1)
    by_fours, of_7_bits = (
        (codes * scales[:, None] - weight).square().mean()
        for codes, scales in (int8_weight(weight, 127, 128), int8_weight(weight, 64, 0))
    )
    assert by_fours < 0.95 * of_7_bits


@pytest.mark.parametrize("unit", UNITS_WITH_HALVES)
def test_int16_is_far_nearer_to_float32_than_int8(unit: str) -> None:
    """Also for an outlier in a row, which takes 6 bits of the others, and one in a channel."""
    x, weight, kernels = matrix(40, 512, 1), matrix(64, 512, 2), kernels_by(unit)
    x[3, 5], weight[7, 9] = 300.0, 200.0
    exact = x.double() @ weight.double().T
    fine, coarse = (
        ((make(weight, None, kernels)(x) - exact).abs().mean(1) / exact.abs().mean(1)).float()
        for make in (int16_linear, int8_linear)
    )
    assert fine.max() < 0.01
    assert fine.median() < 0.0012
    rounded = x.bfloat16().double() @ weight.bfloat16().double().T
    assert fine.median() < ((rounded - exact).abs().mean(1) / exact.abs().mean(1)).median()
    assert (fine < coarse / 8).all()


@pytest.mark.parametrize("unit", [unit for unit in UNITS if codes(unit) == Codes()])
def test_own_and_onednn_int8_agree_on_several_threads(unit: str) -> None:
    dtype = UNITS[unit].dtype
    x, weight = matrix(700, 128, 1).to(dtype), matrix(160, 128, 2).to(dtype)
    with threads(3):
        own = int8_linear(weight, None, kernels_by(unit))(x)
    torch.testing.assert_close(own, int8_linear(weight, None, None)(x), rtol=0.02, atol=0.3)


MAKERS: list[tuple[torch.dtype, Make, float]] = [
    (torch.float32, DenseLinear, 1e-5),
    (torch.bfloat16, DenseLinear, 0.05),
    (torch.bfloat16, PackedLinear, 0.05),
    *(
        (unit.dtype, by(name, own_linear), 0.05 if unit.dtype == torch.bfloat16 else 1e-5)
        for name, unit in UNITS.items()
    ),
    (torch.float32, partial(int8_linear, kernels=None), 0.1),
    (torch.bfloat16, partial(int8_linear, kernels=None), 0.1),
    *((unit.dtype, by(name, int8_linear), 0.1) for name, unit in UNITS.items()),
    *((torch.float32, by(name, int16_linear), 0.01) for name in UNITS_WITH_HALVES),
]


@pytest.mark.parametrize(("dtype", "make", "near"), MAKERS)
@pytest.mark.parametrize("epilogue", ["gelu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize("biased", [True, False])
def test_epilogues(dtype: torch.dtype, make: Make, near: float, epilogue: Activation, biased: bool) -> None:
    x, weight = matrix(35, 128, 1).to(dtype), (matrix(64, 128, 2) * 0.2).to(dtype)
    bias = matrix(1, 64, 3)[0].to(dtype) if biased else None
    linear = make(weight, bias)
    exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert exact.abs().max() > 6  # far out on both sides of the activations
    projected = linear(x).float()
    torch.testing.assert_close(projected, exact, rtol=near, atol=near)
    result = to_dense(linear.with_activation(x, epilogue))
    assert result.dtype == dtype
    rounding = 1e-6 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(result.float(), activate(projected, epilogue), rtol=rounding, atol=rounding)
    gated = to_dense(linear.with_gate(x)).float()
    torch.testing.assert_close(
        gated, F.silu(projected[:, :32]) * projected[:, 32:], rtol=2 * rounding, atol=2 * rounding
    )
    residual = matrix(35, 64, 4).to(dtype)
    plus = linear.with_residual(x, residual).float()
    torch.testing.assert_close(plus, projected + residual.float(), rtol=rounding, atol=2 * rounding)
    # Into a part of a wider tensor, as a layer does.
    wide = torch.full((35, 96), 7.0, dtype=dtype)
    linear(x, out=wide[:, 32:])
    assert torch.equal(wide[:, 32:].float(), projected)
    linear.with_residual(x, residual, out=wide[:, :64])
    assert torch.equal(wide[:, :64].float(), plus)
    assert torch.equal(wide[:, 64:].float(), projected[:, 32:])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("epilogue", "near"), [("gelu", 1.5e-5), ("gelu_tanh", 1e-4), ("quick_gelu", 1e-5)])
def test_activations_of_all_bfloat16_values(unit: str, epilogue: Activation, near: float) -> None:
    dtype = UNITS[unit].dtype
    exactness = 2**-8
    if dtype == torch.float32:
        near, exactness = 3e-7, 3e-7
    # Every bfloat16 between 1e-9 and 64 and its negative, through a layer that leaves it as it is.
    bits = torch.arange(0x3089, 0x4281, dtype=torch.int16)
    positive = torch.cat([bits, torch.zeros(-len(bits) % 32, dtype=torch.int16)]).view(torch.bfloat16)
    x = torch.cat([positive, -positive]).view(-1, 64).to(dtype)
    y = to_dense(own_linear(torch.eye(64).to(dtype), None, kernels_by(unit)).with_activation(x, epilogue)).double()
    exact = activate(x.double(), epilogue)
    assert ((y - exact).abs() <= near + exact.abs() * exactness).all()


@pytest.mark.parametrize(("dtype", "make"), [(dtype, make) for dtype, make, _ in MAKERS])
def test_layers_read_and_write_blocked_tensors_as_they_do_dense_ones(dtype: torch.dtype, make: Make) -> None:
    x = matrix(77, 128, 1).to(dtype)
    rows = blocked(x)
    linear = make(matrix(64, 128, 2).to(dtype), None)
    assert torch.equal(linear(rows), linear(x))
    assert torch.equal(linear(rows[31:70]), linear(x[31:70]))
    assert torch.equal(to_dense(linear.with_gate(rows)), to_dense(linear.with_gate(x)))
    # Into a part of the columns, and over the residual.
    wide, residual = blocked(torch.full((77, 96), 7.0).to(dtype)), matrix(77, 64, 3).to(dtype)
    linear(rows, out=wide.columns(slice(32, 96)))
    assert torch.equal(to_dense(wide)[:, 32:], to_dense(linear(x)))
    assert to_dense(wide)[:, :32].eq(7).all()
    total = blocked(residual)
    linear.with_residual(rows, total, out=total)
    assert torch.equal(to_dense(total), to_dense(linear.with_residual(x, residual)))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("team", [1, 3])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (1, 64, 32),
        (16, 128, 96),
        (17, 64, 32),
        (300, 192, 160),
        # Few rows and many columns, which the threads share.
        (70, 128, 416),
        # More inputs than a K block has, in K blocks of unlike lengths; rows in several row blocks.
        (49, 1088, 64),
        (1100, 576, 64),
        (400, 4160, 64),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("make", [own_linear, int8_linear, int16_linear], ids=["float", "int8", "int16"])
def test_own_gemms_of_many_shapes(
    unit: str, team: int, rows: int, inputs: int, outputs: int, biased: bool, make: Callable[..., Linear]
) -> None:
    if make is int16_linear and unit not in UNITS_WITH_HALVES:
        pytest.skip("multiplies no 16-bit codes")
    # Rows that lie apart, and tensors with NaN where nothing may be read.
    dtype = UNITS[unit].dtype
    x = torch.full((rows, inputs + 64), float("nan"), dtype=dtype)[:, :inputs]
    x.copy_(matrix(rows, inputs, 1))
    weight = matrix(outputs, inputs, 2).to(dtype)
    bias = matrix(1, outputs, 3)[0].to(dtype) if biased else None
    residual = matrix(rows, outputs, 4).to(dtype)
    with threads(team):
        linear = make(weight, bias, kernels_by(unit))
        result, plus, gated = linear(x), linear.with_residual(x, residual), to_dense(linear.with_gate(x))
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-6
    near = {"rtol": rounding, "atol": 1e-2 if dtype == torch.bfloat16 else 3e-5 * inputs**0.5}
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    if make is int8_linear:
        # A value that lies between two codes may fall to either.
        near["atol"], expected = 0.75, by_definition(x, weight, bias, codes(unit)).float()
        assert (result.float() - expected).abs().mean() < 0.02 + rounding / 2 * expected.abs().mean()
    elif make is int16_linear:
        near["atol"] = 0.01 * inputs**0.5
        assert (result - expected).abs().mean() < 0.0015 * inputs**0.5
    torch.testing.assert_close(result.float(), expected, **near)
    torch.testing.assert_close(plus.float(), expected + residual, **near)
    a, b = expected.chunk(2, 1)
    # An error of a moves silu(a) by 1.1 times as much, and that counts b times; one of b counts silu(a) times.
    slack = near["atol"] * (1.1 * b.abs() + F.silu(a).abs() + near["atol"]) + 2**-6 * (F.silu(a) * b).abs()
    assert ((gated.float() - F.silu(a) * b).abs() <= slack).all()


@pytest.mark.parametrize("unit", UNITS)
def test_rows_and_weights_of_two_kinds_are_refused(unit: str) -> None:
    kernels = kernels_by(unit)
    dtype = kernels.dtype
    x, weight = matrix(4, 64, 1).to(dtype), kernels.pack(matrix(32, 64, 2).to(dtype))
    out = torch.empty(4, 32, dtype=dtype)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.gemm(kernels.quantize(x), weight, None, out)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.gemm(kernels.to_blocked(matrix(4, 128, 1).to(dtype)), weight, None, out)
    with pytest.raises(ValueError, match=r"\[4, 32\] cannot be written to rows of \[5, 32\]"):
        kernels.gemm(kernels.to_blocked(x), weight, None, torch.empty(5, 32, dtype=dtype))


@pytest.mark.parametrize("unit", UNITS)
def test_shapes_that_fill_no_column_blocks_are_computed_by_torch(unit: str) -> None:
    dtype = UNITS[unit].dtype
    x, weight = matrix(9, 72, 1).to(dtype), matrix(40, 72, 2).to(dtype)
    for make in (own_linear, int8_linear):
        result = make(weight, None, kernels_by(unit))(x).float()
        torch.testing.assert_close(result, x.float() @ weight.float().T, rtol=0.05, atol=0.5)


@pytest.mark.parametrize("unit", UNITS)
def test_fused_activations_of_8_bits_are_torchs(unit: str) -> None:
    # A weight that selects one input for each output makes the GEMM exact for any input.
    dtype = UNITS[unit].dtype
    x = torch.linspace(-12, 12, 64 * 64).view(64, 64).to(dtype)
    linear = int8_linear(torch.eye(64).to(dtype), None, kernels_by(unit))
    projected = linear(x).float()
    activations: tuple[Activation, ...] = ("gelu", "gelu_tanh", "quick_gelu")
    for epilogue in activations:
        torch.testing.assert_close(
            to_dense(linear.with_activation(x, epilogue)).float(), activate(projected, epilogue), rtol=2**-7, atol=2e-4
        )


@pytest.mark.parametrize("backend", [*INT8, *INT16])
def test_an_outlier_costs_its_own_row_only(backend: tuple[torch.dtype, Make, Codes]) -> None:
    dtype, make, _ = backend
    x, weight = matrix(8, 256, 1), matrix(32, 256, 2)
    x[3, 5] = 400.0
    exact = F.linear(x, weight)
    error = (make(weight.to(dtype), None)(x.to(dtype)).float() - exact).abs()
    assert error[torch.arange(8) != 3].max() < 0.8
    assert error[torch.arange(8) != 3].mean() < 0.02 * exact.abs().mean() + 0.15


@pytest.mark.parametrize("backend", [*INT8, *INT16])
def test_the_largest_value_of_a_row_does_not_wrap_round(backend: tuple[torch.dtype, Make, Codes]) -> None:
    dtype, make, _ = backend
    x = torch.linspace(0.01, 1000, 512).to(dtype)[:, None] * F.one_hot(torch.arange(512) % 64, 64).to(dtype)
    weight = torch.eye(64, dtype=dtype)
    torch.testing.assert_close(make(weight, None)(x), x, rtol=0.02, atol=0)
    torch.testing.assert_close(make(weight, None)(-x), -x, rtol=0.02, atol=0)


@pytest.mark.parametrize("backend", [*INT8, *INT16])
def test_a_row_of_zeros_stays_zero(backend: tuple[torch.dtype, Make, Codes]) -> None:
    dtype, make, _ = backend
    assert make(matrix(32, 64, 1).to(dtype), None)(torch.zeros(3, 64, dtype=dtype)).abs().max() == 0
    assert make(torch.zeros(32, 64, dtype=dtype), None)(matrix(3, 64, 1).to(dtype)).abs().max() == 0
