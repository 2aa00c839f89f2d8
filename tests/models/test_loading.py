"""Checkpoints that lack something, or do not fit their config, are refused with one sentence that says what."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerankd import Reranker
from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.select import alone, place, replica_devices
from rerankd.core import ModelError
from rerankd.layers.scaling import Rope
from rerankd.loading import plan
from rerankd.models.base import Model
from rerankd.models.checkpoint.config import Config, read_config
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.registry import find_architecture
from rerankd.options import LoadOptions
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.modernbert_checkpoints import modernbert

TOKENS = {"no": 2152, "yes": 9693, "<|image_pad|>": 151655, "<|video_pad|>": 151656}


def load(folder: Path, **overrides: Any) -> Model:
    placement = place("cpu", "float32")
    config = read_config(folder, overrides)
    _, architecture = find_architecture(config)
    weights = Weights(Checkpoint(folder), placement.device, placement.dtype)
    model = architecture.load(config, weights, TOKENS.__getitem__, placement, architecture.recipes[0])
    weights.finish()
    return model


@pytest.fixture
def folder(xlmr_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(xlmr_checkpoint, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reason(folder: Path, **overrides: Any) -> str:
    with pytest.raises(ModelError) as raised:
        load(folder, **overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in reason(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in reason(folder)


def test_an_unknown_architecture_is_refused_with_the_reason_and_the_place_of_the_list(folder: Path) -> None:
    message = reason(folder, architectures=["LlamaForCausalLM"])
    assert "names 'LlamaForCausalLM' (`architectures`), which is not supported" in message
    assert "a chat model cannot rerank" in message
    assert "docs/models.md lists the models" in message


def test_a_familys_module_is_imported_when_its_architecture_is_asked_for() -> None:
    code = (
        "import sys; from rerankd.models.registry import ARCHITECTURES, architecture;"
        "ours = lambda: {m for m in sys.modules if m in ('rerankd.models.bert', 'rerankd.models.qwen3_vl')};"
        "assert not ours(); architecture('BertModel'); assert ours() == {'rerankd.models.bert'};"
        "assert all(map(architecture, ARCHITECTURES))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in reason(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -10])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors is damaged or cut short" in reason(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -10])
def test_truncated_bin(make_checkpoint: MakeCheckpoint, tmp_path: Path, keep: int) -> None:
    source = make_checkpoint(checkpoints.xlmr, storage=checkpoints.Storage(weights="bin"))
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    assert "pytorch_model.bin is" in reason(folder)


def test_a_pickle_that_would_run_code_is_not_run(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin is not a weight file that can be loaded safely" in reason(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "pytorch_model.bin is" in reason(folder)
    assert not (folder / "ran").exists()


def test_missing_shard(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = make_checkpoint(checkpoints.xlmr, storage=checkpoints.Storage(shards=True))
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors" in reason(folder)


def test_missing_tensor_names_the_nearest(folder: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["roberta.encoder.layer.0.attention.self.querry.weight"] = tensors.pop(
            "roberta.encoder.layer.0.attention.self.query.weight"
        )

    edit(folder, rename)
    message = reason(folder)
    assert "`roberta.encoder.layer.0.attention.self.query.weight`" in message
    assert "querry" in message


def test_wrong_shape_names_both(folder: Path) -> None:
    message = reason(folder, intermediate_size=96)
    assert "`intermediate_size` is 96" in message
    assert "`roberta.encoder.layer.0.intermediate.dense.weight` has shape [128, 64]" in message
    edit(folder, lambda tensors: tensors.update({"classifier.dense.weight": torch.ones(64, 63)}))
    message = reason(folder)
    assert "`classifier.dense.weight`" in message
    assert "[64, 63]" in message
    assert "[64, 64]" in message


def test_a_layer_too_few_is_no_quiet_wrong_score(folder: Path) -> None:
    assert "`num_hidden_layers` is 2, but the weights have 3" in reason(folder, num_hidden_layers=2)


def test_a_bias_that_the_architecture_has_not_is_refused(qwen3_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen3_checkpoint, tmp_path / "model"))
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}))
    assert "no place for `model.layers.0.self_attn.q_proj.bias`" in reason(folder)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6, "factor": 4.0}}, "longrope"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"hidden_size": "64"}, "hidden_size"),
    ],
)
def test_what_would_change_scores_unseen_is_refused(
    qwen3_checkpoint: Path, overrides: dict[str, Any], word: str
) -> None:
    assert word in reason(qwen3_checkpoint, **overrides)


def test_three_labels_are_no_reranker(make_checkpoint: MakeCheckpoint) -> None:
    assert "3 labels" in reason(make_checkpoint(checkpoints.xlmr, labels=3))


def test_a_bare_encoder_asks_for_modules_json(xlmr_embedder_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(xlmr_embedder_checkpoint, tmp_path / "model"))
    (folder / "modules.json").unlink()
    assert "modules.json" in reason(folder)


@pytest.mark.parametrize("kind", ["WordWeights", "Router"])
def test_unknown_modules_are_refused(xlmr_embedder_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(xlmr_embedder_checkpoint, tmp_path / "model"))
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    assert kind in reason(folder)


def test_unknown_pooling_is_refused(xlmr_embedder_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(xlmr_embedder_checkpoint, tmp_path / "model"))
    path = folder / "1_Pooling" / "config.json"
    pooling = json.loads(path.read_text())
    pooling |= {"pooling_mode_cls_token": False, "pooling_mode": "median"}
    path.write_text(json.dumps(pooling))
    assert "median" in reason(folder)


def test_old_names_of_layer_norms_are_read(bert_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if "LayerNorm" in name:
                old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                tensors[old] = tensors.pop(name)

    edit(folder, age)
    load(folder)


def test_a_yes_no_head_reads_two_rows_only(qwen3_untied_checkpoint: Path) -> None:
    model: Any = load(qwen3_untied_checkpoint)
    head = load_file(qwen3_untied_checkpoint / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.head.relevance, head[[2152, 9693]].float())
    large = [
        value
        for value in (model.head.relevance, model.transformer.embedding.words)
        if isinstance(value, torch.Tensor) and value.shape[0] > 10000
    ]
    assert len(large) == 1


@pytest.mark.parametrize(
    ("device", "dtype", "word"),
    [
        ("gpu", "auto", "'gpu' is unknown"),
        ("cuda", "auto", "finds none here"),
        ("cpu", "float8", "'float8' is unknown"),
    ],
)
def test_devices_and_dtypes_that_are_not_there(device: str, dtype: str, word: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelError, match=word):
        place(device, dtype)


@pytest.mark.parametrize(
    ("names", "replicas", "expected"),
    [
        ("cuda:1", None, ("cuda:1",)),
        ("auto", 1, ("auto",)),
        ("cpu", 3, ("cpu", "cpu", "cpu")),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:2, cuda:0", None, ("cuda:2", "cuda:0")),
        ("cuda:2,cuda:0", 4, ("cuda:2", "cuda:0", "cuda:2", "cuda:0")),
        ("cuda:0", 2, ("cuda:0", "cuda:0")),
        ("cuda", 4, "4 replicas need as many cuda devices; this machine has 3"),
        ("cuda:0,cuda:1", 3, "3 replicas cannot share out 2 devices evenly"),
        ("cuda:0,cpu", None, "of one kind, not on cuda:0,cpu"),
        ("cpu", 0, "at least 1, not 0"),
    ],
)
def test_the_device_of_each_replica(
    monkeypatch: pytest.MonkeyPatch, names: str, replicas: int | None, expected: tuple[str, ...] | str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    if isinstance(expected, str):
        with pytest.raises(ModelError, match=expected):
            replica_devices(names, replicas)
    else:
        assert replica_devices(names, replicas) == expected


def test_a_replica_is_shown_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert alone("cuda:2") == ("cuda", {"CUDA_VISIBLE_DEVICES": "2"})
    assert alone("cpu") == ("cpu", {})
    assert alone("npu:1") == ("npu:1", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-1b")
    assert alone("cuda:1") == ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-1b"})


@pytest.mark.parametrize("name", ["half", "float16", "fp16"])
def test_float16_on_a_cpu_is_what_auto_takes_and_says_so(name: str, caplog: pytest.LogCaptureFixture) -> None:
    chosen = place("cpu", name)
    assert chosen.dtype_name == place("cpu").dtype_name
    (record,) = caplog.records
    assert f"float16 is slow on a CPU: the model computes in {chosen.dtype_name}" in record.getMessage()


def test_rotary_keys_of_old_and_new_configs_read_alike() -> None:
    old = Config({"rope_theta": 5e6, "rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, "old")
    new = Config({"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [1, 2]}}, "new")
    assert old.rotary() == new.rotary()
    assert Config({"rope_theta": 10000, "rope_scaling": None}, "older").rope() == Rope(10000.0)


def test_a_share_of_memory_has_no_effect_on_a_cpu(bert_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Reranker(bert_checkpoint, device="cpu", gpu_memory_utilization=0.5):
        assert "gpu_memory_utilization has no effect on the device cpu" in caplog.text
    with pytest.raises(ModelError, match=r"at most 1, not 1\.5"):
        Reranker(bert_checkpoint, device="cpu", gpu_memory_utilization=1.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_automatic_quantization_is_int8_where_kernels_run_the_model(bert_checkpoint: Path, dtype: str) -> None:
    documents = [f"{word} of the giant panda" * n for n, word in enumerate(("colour", "food", "home", "name"), 1)]
    scores = {}
    for quantization in (None, "int8", "auto"):
        with Reranker(str(bert_checkpoint), device="cpu", dtype=dtype, quantization=quantization) as reranker:
            scores[quantization] = [one.score for one in reranker.rerank("what do pandas eat", documents)]
            found = reranker.info.quantization
    kernels = CpuBackend(getattr(torch, dtype)).runtime.kernels is not None
    assert found == ("int8" if kernels else None)
    assert scores["auto"] == scores[found]
    assert scores["int8"] != scores[None]


@pytest.mark.parametrize("which", ["the model", "the backend"])
def test_automatic_quantization_is_none_where_no_kernel_runs_the_model(
    bert_checkpoint: Path, tmp_path: Path, which: str
) -> None:
    folder, backend = (modernbert(tmp_path), "auto") if which == "the model" else (bert_checkpoint, "torch")
    planned = plan(LoadOptions(str(folder), device="cpu", quantization="auto", backend=backend))
    assert planned.options.quantization is None
    assert planned.info().quantization is None
    planned.load()
