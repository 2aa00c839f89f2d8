"""ModernBERT scores as transformers' class and sentence-transformers' chain do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.models.checkpoint.files import needed_files
from rerankd.options import LoadOptions
from tests.checkpoints import Storage, randomise
from tests.conftest import MakeCheckpoint
from tests.encoder_checkpoints import edit
from tests.modernbert_checkpoints import ettin, modernbert
from tests.references import cross_encoder_scores
from tests.test_scores import PAIRS, largest_difference, spread

SOME = PAIRS[::2]
CLASSIFIERS: list[dict[str, Any]] = [
    {},
    {"old": True},
    {"labels": 2},
    {"classifier_pooling": "mean"},
    {"classifier_bias": True, "norm_bias": True, "attention_bias": True, "mlp_bias": True},
    {"layer_types": ["full_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
]


def scores_of(folder: Path, dtype: str = "float32", **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        return reranker.score(SOME)


def expect(found: Sequence[float], expected: Sequence[float], near: float = 1e-5) -> None:
    assert len(SOME) >= 40
    assert spread(expected) >= 0.2
    assert largest_difference(found, expected) <= near


@pytest.mark.parametrize("options", CLASSIFIERS, ids=str)
def test_a_classifier_scores_as_transformers_does(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    folder = make_checkpoint(modernbert, **options)
    expect(scores_of(folder), cross_encoder_scores(folder, SOME))


def chain_scores(folder: Path) -> list[float]:
    found = CrossEncoder(str(folder), device="cpu").predict(SOME, batch_size=1, apply_softmax=True)
    return [float(score if score.ndim == 0 else score[1]) for score in found]


@pytest.mark.parametrize("options", [{}, {"labels": 2}, {"pooling": "mean"}], ids=str)
def test_a_chain_scores_as_sentence_transformers_does(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    folder = make_checkpoint(ettin, **options)
    expect(scores_of(folder), chain_scores(folder))


def test_a_chain_over_another_encoder(xlmr_embedder_checkpoint: Path, tmp_path: Path) -> None:
    dense = Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    randomise(dense, 2.0)
    modules: list[Any] = [Transformer(str(xlmr_embedder_checkpoint)), Pooling(64, pooling_mode="cls"), dense]
    folder = tmp_path / "model"
    model = CrossEncoder(modules=modules, device="cpu", activation_fn=torch.nn.Identity())
    model.save_pretrained(str(folder), create_model_card=False)
    expect(scores_of(folder), chain_scores(folder))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_bi_encoder_scores_by_the_cosine(make_checkpoint: MakeCheckpoint, tmp_path: Path, pooling: str) -> None:
    source = make_checkpoint(ettin) / "source"
    modules: list[Any] = [Transformer(str(source)), Pooling(64, pooling_mode=pooling), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    queries, documents = (model.encode(list(texts), batch_size=1) for texts in zip(*SOME, strict=True))
    expect(scores_of(tmp_path / "model"), [float(cosine) for cosine in (queries * documents).sum(1)])


@pytest.mark.parametrize("maker", [modernbert, ettin])
def test_bfloat16_scores_are_near(make_checkpoint: MakeCheckpoint, maker: Any) -> None:
    folder = make_checkpoint(maker, storage=Storage(dtype="bfloat16"))
    expected = scores_of(folder)
    scale = spread(expected) if maker is ettin else 1.0  # whose scores are logits
    expect(scores_of(folder, "bfloat16"), expected, 0.01 * max(scale, 1.0))


def test_inspection_of_a_chain(make_checkpoint: MakeCheckpoint) -> None:
    found = inspect(plan(LoadOptions(str(make_checkpoint(ettin)), device="cpu")))
    assert (found.recipe, found.head) == ("cross-encoder", "modules Pooling, Dense, LayerNorm, Dense")
    assert found.activation == "identity"
    assert "source/" in found.other_files


def change(folder: Path, name: str, **entries: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("name", "entries", "said"),
    [
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Mish"}, "activation_function"),
        ("2_Dense/config.json", {"in_features": 32}, "in_features"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
        ("2_Dense/config.json", {"bias": True}, "linear.bias"),
        ("3_LayerNorm/config.json", {"dimension": 3}, "dimension"),
        ("4_Dense/config.json", {"module_output_name": "sentence_embedding"}, "as 'sentence_embedding'"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pools by"),
    ],
)
def test_odd_modules_are_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, entries: dict[str, Any], said: str
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(ettin), tmp_path / "model"))
    change(folder, name, **entries)
    with pytest.raises(ModelError, match=said) as raised:
        scores_of(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"classifier_pooling": "max"}, "pooling"),
        ({"hidden_activation": "mish"}, "hidden_activation"),
        ({"num_hidden_layers": 4, "layer_types": ...}, "num_hidden_layers"),
        ({"intermediate_size": 64}, "intermediate_size"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
    ],
)
def test_odd_configurations_are_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    folder = Path(shutil.copytree(make_checkpoint(modernbert), tmp_path / "model"))
    edit(folder, **entries)
    with pytest.raises(ModelError, match=said):
        scores_of(folder)


def test_a_window_makes_a_difference(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(modernbert), tmp_path / "model"))
    edit(folder, local_attention=4096)
    assert largest_difference(scores_of(folder), scores_of(make_checkpoint(modernbert))) > 1e-3


def test_module_weights_are_fetched_in_one_form() -> None:
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "modules.json", "1_Pooling/config.json"]
    files += ["2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]
    files += ["3_Dense/pytorch_model.bin", "onnx/model.safetensors"]
    assert set(needed_files(files)) == {
        *("config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"),
        *("2_Dense/model.safetensors", "3_Dense/pytorch_model.bin"),
    }
    assert not [name for name in needed_files(files, weights=False) if not name.endswith(".json")]


def test_torch_is_the_reference_of_every_backend(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(modernbert)
    assert torch.tensor(scores_of(folder, backend="torch")).allclose(torch.tensor(scores_of(folder)), atol=1e-5)
