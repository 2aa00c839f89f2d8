"""Norms by the kernels against torch's own, in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.norm import LayerNorm, NormRope, RMSNorm, States
from rerankd.backends.cpu.rows import Rows, columns, to_dense
from rerankd.layers.rotary import Rotary, Rotation, rotate
from tests.backends.cpu.test_rows import blocked
from tests.backends.cpu.units import UNITS, kernels_by

ULP = {torch.bfloat16: 2**-8, torch.float32: 2e-6}
"""The relative rounding error of a dtype, with some for the mean of many values."""


@pytest.fixture(params=UNITS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_by(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [16, 1024, 8])
@pytest.mark.parametrize("rows", [1, 5, 8, 61])
def test_rms_norm(kernels: Kernels, rows: int, width: int) -> None:
    # Rows apart from each other in memory, as in a slice of a wider tensor; 8 columns fill no register.
    x = random(rows, 2 * width).to(kernels.dtype)[:, :width] * torch.linspace(0.01, 50, rows)[:, None].to(kernels.dtype)
    x = torch.cat([x, x], 1)[:, :width]
    weight = (random(width, seed=1) + 2).to(kernels.dtype)
    expected = F.rms_norm(x.float(), (width,), weight.float(), 1e-6)
    norm = RMSNorm(weight, 1e-6, kernels)
    torch.testing.assert_close(to_dense(norm.rows(x)).float(), expected, rtol=ULP[kernels.dtype], atol=1e-6)
    if width % 32 == 0:
        assert torch.equal(to_dense(norm.rows(blocked(x))), to_dense(norm.rows(x)))


def test_eps_counts(kernels: Kernels) -> None:
    x, weight = torch.full((2, 32), 1e-3).to(kernels.dtype), torch.ones(32).to(kernels.dtype)
    expected = F.rms_norm(x.float(), (32,), weight.float(), 1e-3)
    torch.testing.assert_close(
        to_dense(RMSNorm(weight, 1e-3, kernels).rows(x)).float(), expected, rtol=ULP[kernels.dtype], atol=0
    )
    assert expected.max() < 0.1


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 32), (3, 64), (16, 128), (2, 48), (4, 16)])
@pytest.mark.parametrize("is_blocked", [True, False])
def test_norm_and_rotation_of_heads(kernels: Kernels, heads: int, head_dim: int, is_blocked: bool) -> None:
    rows, width = 37, heads * head_dim
    projected = random(rows, 2 * width).to(kernels.dtype)
    weight = (random(head_dim, seed=1) + 2).to(kernels.dtype)
    rotation = Rotary.plain(head_dim, 1e4).rotation(torch.arange(rows) * 7, kernels.dtype)
    sides: Rows = blocked(projected) if is_blocked else projected
    norm_rope = NormRope(head_dim, RMSNorm(weight, 1e-6, kernels), rotary=True)
    for own in (slice(width), slice(width, 2 * width)):
        x = columns(sides, own)
        out = torch.empty(rows, width, dtype=kernels.dtype)
        norm_rope(x, rotation, out)
        expected = torch.empty(rows, heads, head_dim)
        normed = F.rms_norm(projected[:, own].view(rows, heads, head_dim).float(), (head_dim,), weight.float(), 1e-6)
        rotate(normed, Rotation(rotation.cos.float(), rotation.sin.float()), expected)
        # Where torch computes, it rounds once more on the way.
        slack = 1 if kernels.fit(head_dim // 2) else 4
        torch.testing.assert_close(
            out.view(expected.shape).float(), expected, rtol=slack * ULP[kernels.dtype], atol=slack * ULP[kernels.dtype]
        )
        # In place, as a layer does.
        norm_rope(x, rotation, x)
        assert torch.equal(to_dense(x), out)


@pytest.mark.parametrize("width", [48, 384])
def test_add_norm(kernels: Kernels, width: int) -> None:
    x, delta = random(33, width) * 3 + 5, random(33, width, seed=1).to(kernels.dtype)
    weight, bias = random(width, seed=2), random(width, seed=3)
    expected = F.layer_norm(x + delta, (width,), weight, bias, 1e-5)
    out = States.empty(33, width, CpuBackend(kernels.dtype).runtime)
    LayerNorm(weight, bias, 1e-5, kernels).add_norm(x, delta, out)
    torch.testing.assert_close(to_dense(out.float32), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(to_dense(out.rounded), to_dense(out.float32).to(kernels.dtype))
    if width % 32 == 0:
        same = States.empty(33, width, CpuBackend(kernels.dtype).runtime)
        LayerNorm(weight, bias, 1e-5, kernels).add_norm(x, blocked(delta), same)
        assert torch.equal(to_dense(same.float32), to_dense(out.float32))
        assert torch.equal(to_dense(same.rounded), to_dense(out.rounded))
    # A layer writes its second norm over the result of its first one.
    again = F.layer_norm(to_dense(out.float32) + delta, (width,), weight, bias, 1e-5)
    LayerNorm(weight, bias, 1e-5, kernels).add_norm(out.float32, delta, out)
    torch.testing.assert_close(to_dense(out.float32), again, rtol=1e-5, atol=1e-5)


def test_nan_stays_nan(kernels: Kernels) -> None:
    x = random(3, 64).to(kernels.dtype)
    x[1, 7] = float("nan")
    normed = to_dense(RMSNorm(torch.ones(64).to(kernels.dtype), 1e-6, kernels).rows(x))
    assert normed[1].isnan().all()
    assert not normed[[0, 2]].isnan().any()


def test_parts_of_states_are_written_in_place(kernels: Kernels) -> None:
    width, runtime = 128, CpuBackend(kernels.dtype).runtime
    x, delta = random(90, width), random(90, width, seed=1).to(kernels.dtype)
    norm = LayerNorm(random(width, seed=2), random(width, seed=3), 1e-5, kernels)
    whole, parts = States.empty(90, width, runtime), States.empty(90, width, runtime)
    norm.add_norm(x, delta, whole)
    for rows in (slice(0, 61), slice(61, 90)):
        norm.add_norm(x[rows], delta[rows], parts.part(rows))
    assert torch.equal(to_dense(parts.rounded), to_dense(whole.rounded))
    selected = whole.index_select(torch.tensor([3, 70, 3]), runtime)
    assert torch.equal(to_dense(selected.rounded), to_dense(whole.rounded)[[3, 70, 3]])
    assert torch.equal(to_dense(selected.float32), to_dense(whole.float32)[[3, 70, 3]])
