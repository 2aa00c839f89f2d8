"""The 8-bit product against the arithmetic it stands for, and against the exact product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rerankd.layers.linear import Int8Linear

DTYPES = [torch.float32, torch.bfloat16]


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def by_definition(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Rows and channels scaled to 127 and rounded, multiplied exactly, scaled back; all in float64."""
    rows = x.double().abs().amax(1, keepdim=True) / 127
    channels = weight.double().abs().amax(1, keepdim=True) / 127
    product = (x.double() / rows).round() @ (weight.double() / channels).round().T
    return product * rows * channels.T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_product_is_the_one_defined(dtype: torch.dtype, biased: bool, rows: int) -> None:
    x, weight = matrix(rows, 96, 1).to(dtype), matrix(40, 96, 2).to(dtype)
    bias = matrix(1, 40, 3)[0].to(dtype) if biased else None
    result = Int8Linear(weight, bias)(x)
    assert result.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(result.double(), by_definition(x, weight, bias), rtol=1e-2, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outlier_costs_its_own_row_only(dtype: torch.dtype) -> None:
    x, weight = matrix(8, 256, 1), matrix(32, 256, 2)
    x[3, 5] = 400.0
    exact = F.linear(x, weight)
    error = (Int8Linear(weight.to(dtype), None)(x.to(dtype)).float() - exact).abs()
    assert error[torch.arange(8) != 3].max() < 0.8
    assert error[torch.arange(8) != 3].mean() < 0.02 * exact.abs().mean() + 0.15


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_value_of_a_row_does_not_wrap_round(dtype: torch.dtype) -> None:
    x = torch.linspace(0.01, 1000, 4096).to(dtype)[:, None] * torch.tensor([1.0, -1.0], dtype=dtype)
    result = Int8Linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype), None)(x)
    torch.testing.assert_close(result, x, rtol=0.02, atol=0)


def test_a_row_of_zeros_stays_zero() -> None:
    assert Int8Linear(matrix(4, 8, 1), None)(torch.zeros(3, 8)).abs().max() == 0
    assert Int8Linear(torch.zeros(4, 8), None)(matrix(3, 8, 1)).abs().max() == 0
