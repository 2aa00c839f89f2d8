"""Embeddings by the kernel and by torch's own functions, against their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.embedding import NormedEmbedding
from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.norm import States
from rerankd.backends.cpu.rows import to_dense
from rerankd.layers.spec import Affine, EmbeddingWeights, LayerSpec, Norm, TransformerSpec
from rerankd.layers.transformer import Tokens
from tests.backends.cpu.units import UNITS, kernels_by

ROWS = 37


@pytest.fixture(params=[*UNITS, None])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    return None if request.param is None else kernels_by(request.param)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dtype_of(kernels: Kernels | None) -> torch.dtype:
    return torch.bfloat16 if kernels is None else kernels.dtype


def empty_states(width: int, kernels: Kernels | None) -> States:
    return States.empty(ROWS, width, CpuBackend(dtype_of(kernels)).runtime)


def embeddings(width: int, kernels: Kernels | None) -> NormedEmbedding:
    words, positions, types = (random(n, width, seed=n).to(dtype_of(kernels)) for n in (50, 40, 2))
    norm = Norm("layer", 0.5)
    layer = LayerSpec(width, 1, width, width, norm, "post", "gelu", causal=False)
    affine = Affine(random(width, seed=3), random(width, seed=4))
    spec = TransformerSpec((layer,), embedding_norm=norm)
    return NormedEmbedding(spec, EmbeddingWeights(words, positions, types, affine), kernels)


@pytest.mark.parametrize("width", [48, 384])
@pytest.mark.parametrize("typed", [True, False])
def test_embeddings_are_summed_and_normed(width: int, typed: bool, kernels: Kernels | None) -> None:
    table = embeddings(width, kernels)
    ids, positions = torch.arange(ROWS) * 7 % 50, torch.arange(ROWS) + 3
    types = torch.arange(ROWS) % 2 if typed else None
    weights = table.weights
    assert weights.positions is not None
    assert weights.types is not None
    assert weights.norm is not None
    total = weights.words[ids].float() + weights.positions[positions] + weights.types[0 if types is None else types]
    expected = F.layer_norm(total, (width,), *weights.norm, 0.5)
    out = empty_states(width, kernels)
    table(Tokens(ids, positions, types), slice(0, ROWS), out)
    torch.testing.assert_close(to_dense(out.float32), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(to_dense(out.rounded), to_dense(out.float32).to(dtype_of(kernels)))


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("number", [-1, 50])
def test_rows_that_a_table_lacks_are_an_error(wrong: int, number: int, kernels: Kernels | None) -> None:
    numbers = [torch.zeros(ROWS, dtype=torch.int64) for _ in range(3)]
    numbers[wrong][-1] = number
    with pytest.raises(IndexError):
        embeddings(64, kernels)(Tokens(*numbers), slice(0, ROWS), empty_states(64, kernels))
