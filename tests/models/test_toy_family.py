"""A family that no file of ours knows, written as docs/dev/add-a-model.md says: each backend against its definition."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rerankd.backends.base import Backend
from rerankd.backends.cuda.backend import CudaBackend
from rerankd.backends.npu.attention import npu_backend
from rerankd.backends.ranks import Ranks
from rerankd.backends.select import Placement, place
from rerankd.core import PackedBatch
from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import Affine, EmbeddingWeights, LayerSpec, Norm, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.base import TextModel
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.heads import ClassifierHead
from rerankd.models.stack import LayerNames, Stack
from tests.backends.dense import VOCABULARY, RandomWeights, dense_states, draw
from tests.backends.test_npu import fusion_attention
from tests.backends.test_transformers import Packed

# The family: what a model file holds.
NORM = Norm("rms", 1e-5, offset=1.0)
LAYER = LayerSpec(
    hidden=64, heads=4, kv_heads=2, head_dim=32, mlp=96, norm=NORM, placement="pre", activation="silu", gated=True,
    causal=True, qk_norm=NORM, rotary=Rotary.plain(32, 500.0), out_bias=True,
)  # fmt: skip
SPEC = TransformerSpec((LAYER, LAYER), final_norm=NORM)
NAMES = LayerNames(
    layer="toy.{}", qkv=("mix",), out="unmix", up=("wide",), down="narrow", attention_norm="n1", mlp_norm="n2",
    query_norm="nq", key_norm="nk",
)  # fmt: skip


def toy(weights: Weights, executor: Executor) -> TextModel:
    words = EmbeddingWeights(weights.tensor("words", VOCABULARY, 64))
    stack = Stack(SPEC, weights, NAMES, words, weights.norm("last", 64, NORM))
    dense = weights.affine("dense", 64, 64, True, torch.float32)
    head = ClassifierHead(dense, weights.affine("score", 1, 64, True, torch.float32), "identity")
    return TextModel(SPEC, executor.transformer(SPEC, stack), head)


# The rest is a checkpoint of it, and its definition.
DENSE, SCORE = Affine(draw(64, 64, seed=1), draw(64, seed=2)), Affine(draw(1, 64, seed=3), draw(1, seed=4))


def checkpoint(folder: Path, drawn: RandomWeights) -> Path:
    assert drawn.final_norm is not None
    tensors = {"words": drawn.embedding.words, "last.weight": drawn.final_norm.weight - 1}
    for name, head in (("dense", DENSE), ("score", SCORE)):
        assert head.bias is not None
        tensors |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    for i, layer in enumerate(drawn.layers()):
        assert layer.attention_norm is not None
        assert layer.query_norm is not None
        assert layer.key_norm is not None
        assert layer.out.bias is not None
        own = {
            "mix.weight": torch.cat([layer.query.weight, layer.key_value.weight]),
            "unmix.weight": layer.out.weight,
            "unmix.bias": layer.out.bias,
            "wide.weight": layer.up.weight,
            "narrow.weight": layer.down.weight,
            "n1.weight": layer.attention_norm.weight - 1,
            "n2.weight": layer.mlp_norm.weight - 1,
            "nq.weight": layer.query_norm.weight - 1,
            "nk.weight": layer.key_norm.weight - 1,
        }
        tensors |= {f"toy.{i}.{name}": tensor for name, tensor in own.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def expected(packed: Packed, drawn: RandomWeights) -> Tensor:
    """Logits of all documents: the classifier reads the first of each document's own rows."""
    firsts = torch.stack([dense_states(SPEC, drawn, ids)[-len(rows)] for ids, rows in packed.sequences])
    dense, out = (
        Affine(part.weight.double(), None if part.bias is None else part.bias.double()) for part in (DENSE, SCORE)
    )
    return torch.nn.functional.linear(torch.nn.functional.linear(firsts, *dense).tanh(), *out)[:, 0]


def executor(backend: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Backend | Placement:
    """A backend that computes on the CPU: cuda's kernels in Triton's interpreter, npu's fused call by a stand-in."""
    device = torch.device("cpu")
    if backend == "cuda":
        return CudaBackend(device, getattr(torch, dtype))
    if backend == "npu":
        monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu_fusion_attention=fusion_attention))
        return npu_backend(device, getattr(torch, dtype), Ranks())
    return place("cpu", dtype, backend=backend)


@pytest.mark.parametrize(
    ("backend", "dtype", "near"),
    [
        *((name, dtype, near) for name in ("torch", "cpu") for dtype, near in (("float32", 1e-4), ("bfloat16", 0.5))),
        pytest.param("cuda", "float32", 1e-4, marks=pytest.mark.emulator),
        ("npu", "bfloat16", 0.5),
        ("auto", "float32", 1e-4),
    ],
)
def test_a_toy_family_runs_on_every_backend(
    tmp_path: Path, backend: str, dtype: str, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, packed = RandomWeights(SPEC), Packed(causal=True)
    chosen = executor(backend, dtype, monkeypatch)
    weights = Weights(Checkpoint(checkpoint(tmp_path, drawn)), chosen.device, chosen.dtype)
    model = toy(weights, chosen)
    weights.finish()
    assert model.shares_prefix
    batch = PackedBatch(packed.tokens.ids, packed.tokens.positions, None, packed.groups)
    wanted = expected(packed, drawn)
    assert wanted.std() > 2
    assert (model(batch).double() - wanted).abs().max() < near
