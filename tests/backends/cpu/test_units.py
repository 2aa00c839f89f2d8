"""Which unit computes: the fastest that the processor has, within the cap of the environment."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.native import Kernels, KernelsError
from rerankd.backends.cpu.native.units import CAP, UNITS
from rerankd.backends.select import place
from rerankd.core import ModelError
from tests.backends.cpu.units import UNITS_WITH_HALVES, codes, kernels_by


@pytest.mark.parametrize("cap", [unit.name for unit in UNITS])
def test_the_cap_names_the_fastest_unit_that_runs(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = kernels_by(cap).unit  # or the test is skipped
    without = Kernels.load(torch.float32)
    monkeypatch.setenv(CAP, cap)
    found = Kernels.load(wanted.dtype)
    assert found is not None
    # Emulated tiles are only for tests.
    assert found.unit.number <= wanted.number
    assert found.unit == wanted or cap == "amx"
    if wanted.dtype == torch.float32:
        assert Kernels.load(torch.bfloat16) is None
        assert place("cpu").dtype == torch.float32
        backend = CpuBackend(torch.float32)
        assert backend.runtime.kernels is not None
        assert backend.runtime.kernels.unit == wanted
    else:
        assert place("cpu").dtype == torch.bfloat16
        assert without is not None
        rows = Kernels.load(torch.float32)
        assert rows is not None
        assert rows.unit == without.unit


def test_an_unknown_cap_is_refused_with_the_names_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP, "avx1024")
    with pytest.raises(
        ModelError, match=r"RERANKD_ISA=avx1024 names no instruction set of x86_64; choose avx2, .*, amx"
    ):
        place("cpu")


def fours(outputs: int, inputs: int, most: int) -> Tensor:
    """A weight of which all that is added in 16 bits is as large as can be, in all orders."""
    generator = torch.Generator().manual_seed(1)
    half, quarter = most // 2, most // 4
    kinds = [[127, most - 127, 0, 0], [quarter] * 4, [half, half, -half, -half], [127, -127, most - 127, 127 - most]]
    shape = outputs, inputs // 8, 2
    drawn = torch.tensor(kinds, dtype=torch.int8)[torch.randint(len(kinds), shape, generator=generator)]
    drawn = drawn.gather(-1, torch.rand(*shape, 4, generator=generator).argsort(-1))
    return drawn.view(*shape, 2, 2).transpose(2, 3).reshape(outputs, inputs).contiguous()


def exact_sums(kernels: Kernels) -> None:
    """Codes and weights at the ends of their ranges: any sum of 16 bits would overflow."""
    largest = codes(kernels.unit.name)
    x = torch.full((9, 256), float(largest.row))
    x[1::2, ::2], x[0, 0] = 0.0, -0.0
    x[3] = torch.arange(256).float() % (largest.row + 1)
    # Half a step at both ends: of 255 codes both round away from 0, and the larger one to one code more than there are.
    low = largest.row // 2 + 0.5
    high, zero, rounded = largest.row - low, round(low), x.clone()
    x[5], x[5, 0] = high, -low
    rounded[5], rounded[5, 0] = min(round(high), largest.row - zero), -zero
    weight = torch.full((64, 256), largest.weight, dtype=torch.int8)
    if largest.four:
        weight = fours(64, 256, largest.four)
    weight[1::2] *= -1
    packed = kernels.pack_int8(weight, torch.ones(64))
    out = torch.empty(9, 64, dtype=kernels.dtype)
    kernels.gemm(kernels.quantize(x.to(kernels.dtype)), packed, None, out)
    exact = (rounded.double() @ weight.double().T).to(kernels.dtype).float()
    assert torch.equal(out.float(), exact), kernels.unit.name


@pytest.mark.parametrize("unit", UNITS_WITH_HALVES)
def test_int16_sums_are_exact(unit: str) -> None:
    """Codes and weights at the ends of their ranges: sums that int32 just holds."""
    kernels = kernels_by(unit)
    half = kernels.largest_half
    x = torch.full((9, 256), float(half))
    x[1::2] *= -1
    x[2, ::2] *= -1
    x[3] = torch.linspace(-half, half, 256).round()
    most = (2**31 - 1) // half
    weight = torch.full((64, 256), most // 256, dtype=torch.int16)
    weight[1::3] *= -1
    weight[2::3, ::2] *= -1
    weight[5] = 0
    weight[5, 7] = 32767
    out = torch.empty(9, 64, dtype=kernels.dtype)
    kernels.gemm(kernels.quantize(x, halves=True), kernels.pack_int16(weight, torch.ones(64)), None, out)
    assert torch.equal(out, (x.double() @ weight.double().T).float())


def test_int16_is_refused_by_a_unit_without_it() -> None:
    kernels = kernels_by("avx512")
    assert kernels.largest_half == 0
    with pytest.raises(KernelsError, match="unknown"):
        kernels.quantize(torch.ones(2, 64), halves=True)


def test_int8_sums_are_exact_by_every_unit() -> None:
    if Kernels.load(torch.float32) is None:
        pytest.skip("No kernels were built.")
    ran = []
    for unit in UNITS:
        try:
            kernels = kernels_by(unit.name)
        except pytest.skip.Exception:
            continue
        exact_sums(kernels)
        ran.append(unit)
    assert ran
