"""Embeddings by the kernel and by torch's own functions, against their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.engine.device import place
from rerankd.layers.embedding import Embeddings
from rerankd.layers.native import Kernels
from rerankd.layers.norm import LayerNorm, States
from rerankd.layers.rows import plain

KERNELS = Kernels.load()
by_either = pytest.mark.parametrize(
    "kernels", [pytest.param(KERNELS, marks=pytest.mark.skipif(KERNELS is None, reason="no kernels here")), None]
)
ROWS = 37


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embeddings(width: int, kernels: Kernels | None) -> Embeddings:
    words, positions, types = (random(n, width, seed=n).bfloat16() for n in (50, 40, 2))
    return Embeddings(words, positions, types, LayerNorm(random(width, seed=3), random(width, seed=4), 0.5, kernels))


@by_either
@pytest.mark.parametrize("width", [48, 384])
@pytest.mark.parametrize("typed", [True, False])
def test_embeddings_are_summed_and_normed(width: int, typed: bool, kernels: Kernels | None) -> None:
    table = embeddings(width, kernels)
    ids, positions = torch.arange(ROWS) * 7 % 50, torch.arange(ROWS) + 3
    types = torch.arange(ROWS) % 2 if typed else None
    total = table.words[ids].float() + table.positions[positions] + table.types[0 if types is None else types]
    expected = F.layer_norm(total, (width,), table.norm.weight, table.norm.bias, 0.5)
    out = States.empty(ROWS, width, place("cpu", "bfloat16").runtime)
    table(ids, positions, types, out)
    torch.testing.assert_close(out.exact, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain(out.rounded), out.exact.bfloat16())


@by_either
@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("number", [-1, 50])
def test_rows_that_a_table_lacks_are_an_error(wrong: int, number: int, kernels: Kernels | None) -> None:
    numbers = [torch.zeros(ROWS, dtype=torch.int64) for _ in range(3)]
    numbers[wrong][-1] = number
    with pytest.raises(IndexError):
        embeddings(64, kernels)(*numbers, States.empty(ROWS, 64, place("cpu", "bfloat16").runtime))
