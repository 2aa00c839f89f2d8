"""Which unit computes: the fastest that the processor has, within the cap of the environment."""

from __future__ import annotations

import pytest
import torch

from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.native.units import CAP, UNITS
from rerankd.backends.select import place
from rerankd.core import ModelError
from tests.backends.cpu.units import codes, kernels_by


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
    weight[1::2] *= -1
    packed = kernels.pack_int8(weight, torch.ones(64))
    out = torch.empty(9, 64, dtype=kernels.dtype)
    kernels.gemm(kernels.quantize(x.to(kernels.dtype)), packed, None, out)
    exact = (rounded.double() @ weight.double().T).to(kernels.dtype).float()
    assert torch.equal(out.float(), exact), kernels.unit.name


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
