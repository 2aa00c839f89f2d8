"""When the kernels compute what is called for."""

from __future__ import annotations

import pytest
import torch

from rerankd.layers.native import Kernels
from rerankd.layers.rows import plain

KERNELS = Kernels.load()


@pytest.fixture
def kernels() -> Kernels:
    if KERNELS is None:
        pytest.skip("no kernels were built, or none for this processor")
    return KERNELS


def test_operations_called_for_together_are_computed_at_the_end_in_order(kernels: Kernels) -> None:
    x, weight, zeros = torch.randn(40, 64), torch.randn(64), torch.zeros(40, 64).bfloat16()
    outs = torch.zeros(2, 40, 64)
    rounded = torch.zeros(40, 64).bfloat16()
    with kernels.together():
        kernels.add_layer_norm(x, zeros, weight, weight, 1e-5, outs[0], rounded)
        kernels.add_layer_norm(outs[0], rounded, weight, weight, 1e-5, outs[1], rounded)
        assert not outs.any()
    first = torch.nn.functional.layer_norm(x, (64,), weight, weight, 1e-5)
    second = torch.nn.functional.layer_norm(first + first.bfloat16(), (64,), weight, weight, 1e-5)
    torch.testing.assert_close(outs, torch.stack([first, second]), rtol=1e-2, atol=1e-2)


def test_what_was_called_for_before_an_error_is_never_computed(kernels: Kernels) -> None:
    x, weight, zeros = torch.randn(4, 64), torch.ones(64), torch.zeros(4, 64).bfloat16()
    out = torch.zeros(4, 64)

    def fail() -> None:
        with kernels.together():
            kernels.add_layer_norm(x, zeros, weight, weight, 1e-5, out, zeros)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with kernels.together():
        pass
    assert not out.any()
    kernels.add_layer_norm(x, zeros, weight, weight, 1e-5, out, zeros)
    assert out.any()


def test_room_is_used_again_when_nothing_refers_to_it(kernels: Kernels) -> None:
    x, weight = torch.randn(40, 64).bfloat16(), torch.ones(64).bfloat16()
    outside = kernels.empty_rows(40, 64)
    with kernels.together():
        first = kernels.rms_norm(x, weight, 1e-6)
        kept = kernels.rms_norm(first, weight, 1e-6)
        part = kept[10:20]
        freed = first.at
        del first, kept
        other = kernels.empty_rows(40, 64)
        assert other.at == freed
        assert kernels.empty_rows(40, 64).at not in (part.at - 10 * 64, other.at, outside.at)
    expected = plain(kernels.rms_norm(kernels.rms_norm(x, weight, 1e-6), weight, 1e-6))
    assert torch.equal(plain(part), expected[10:20])


def test_batches_use_the_same_memory_one_after_another(kernels: Kernels) -> None:
    x, weight = torch.randn(200, 64).bfloat16(), torch.ones(64).bfloat16()
    places = []
    for count in (200, 198, 10, 200):
        with kernels.together():
            normed = kernels.rms_norm(x[:count], weight, 1e-6)
            places.append((normed.at, kernels.rms_norm(normed, weight, 1e-6).at))
        del normed
    assert set(places[0]) == set(places[1]) == set(places[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [40, 64, 320])
def test_rows_are_chosen_when_they_are_there(kernels: Kernels, width: int, dtype: torch.dtype) -> None:
    x, rows = torch.randn(200, width).to(dtype), torch.tensor([199, 0, 7, 7, *range(20, 150, 3)])
    later = torch.zeros_like(x)
    with kernels.together():
        chosen = kernels.choose(later, rows)
        later.copy_(x)
    assert torch.equal(plain(chosen), x[rows])
    assert kernels.choose(x, rows[:0]).shape == (0, width)


def test_rows_in_strips_are_chosen_when_they_are_there(kernels: Kernels) -> None:
    x, weight = torch.randn(200, 320).bfloat16(), torch.ones(320).bfloat16()
    rows = torch.tensor([199, 0, 7, 7, *range(20, 150, 3)])
    with kernels.together():
        normed = kernels.rms_norm(x, weight, 1e-6)
        chosen = kernels.choose(normed[1:200], rows - 1 + (rows == 0))
        again = kernels.rms_norm(chosen, weight, 1e-6)
    expected = plain(normed)[rows + (rows == 0)]
    assert torch.equal(plain(chosen), expected)
    assert torch.equal(plain(again), plain(kernels.rms_norm(expected, weight, 1e-6)))


def test_what_is_used_stays_in_memory_until_it_is_computed(kernels: Kernels) -> None:
    weight = torch.ones(64).bfloat16()
    with kernels.together():
        before = kernels.rms_norm(torch.randn(40, 64).bfloat16(), weight, 1e-6)
    expected = plain(kernels.rms_norm(before, weight, 1e-6))
    out = kernels.empty_rows(40, 64)
    with kernels.together():
        kernels.product(before, kernels.pack_bf16(torch.eye(64).bfloat16()), None, out)
        last = kernels.rms_norm(out, weight, 1e-6)
        size = before.room.size
        del before
        # What takes its place, were it free.
        taken = [torch.full((size,), 255, dtype=torch.uint8) for _ in range(64)]
    torch.testing.assert_close(plain(last), expected, rtol=1e-2, atol=1e-2)
    assert len(taken) == 64
