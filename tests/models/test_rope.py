"""Scaled rotary embeddings from config.json or overrides to scores, against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerankd import Reranker
from rerankd.core import ModelError, RerankRequest, text_content
from rerankd.layers.scaling import Linear, Rope, Yarn
from rerankd.models.checkpoint.config import Config, read_config
from tests import checkpoints, references
from tests.conftest import MakeCheckpoint
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[::4] for document in DOCUMENTS[::3]]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: list[dict[str, Any]] = [
    YARN,
    {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "attention_factor": 1.4},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]


def scaled(folder: Path, scaling: dict[str, Any], to: Path) -> Path:
    """A copy whose config.json has `scaling` with the keys of transformers 4."""
    copy = Path(shutil.copytree(folder, to / "scaled"))
    config = json.loads((copy / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": theta, "rope_scaling": scaling}))
    return copy


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: str(scaling.get("rope_type", "old keys")))
def test_scores_equal_transformers(qwen3_checkpoint: Path, tmp_path: Path, scaling: dict[str, Any]) -> None:
    folder = scaled(qwen3_checkpoint, scaling, tmp_path)
    expected = references.qwen3_scores(folder, PAIRS)
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        plain = reranker.score(PAIRS)
    changes = scaling.get("rope_type") != "dynamic"
    assert (max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 1e-3) == changes
    overrides: list[tuple[Path, dict[str, Any]]] = [
        (folder, {}),
        (qwen3_checkpoint, {"rope_scaling": scaling}),
        (qwen3_checkpoint, {"rope_parameters": scaling}),
    ]
    for where, override in overrides:
        with Reranker(where, device="cpu", dtype="float32", hf_overrides=override) as reranker:
            assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("keys", ["old", "new"])
def test_overrides_win_under_either_name(qwen3_checkpoint: Path, tmp_path: Path, keys: str) -> None:
    folder = scaled(qwen3_checkpoint, YARN, tmp_path)
    if keys == "new":
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"] = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
        (folder / "config.json").write_text(json.dumps(config))
    own = read_config(folder, {}).rope()
    assert own == Rope(1e6, Yarn(4.0, 64))
    for name in ("rope_scaling", "rope_parameters"):
        for value in (None, {"rope_type": "default"}):
            assert read_config(folder, {name: value}).rope() == Rope(1e6)
        assert read_config(folder, {name: {"factor": 2.0}}).rope() == Rope(1e6, Yarn(2.0, 64))
        assert read_config(folder, {name: {"type": "linear", "factor": 2}}).rope() == Rope(1e6, Linear(2.0))
    assert read_config(folder, {"rope_theta": 5e5}).rope() == Rope(5e5, own.scaling)
    assert read_config(folder, {"rope_parameters": {"rope_theta": 5e5}}).rope() == Rope(5e5, own.scaling)


def test_a_vision_models_sections_stay_and_its_frequencies_are_scaled(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(checkpoints.qwen3_vl)
    text = read_config(folder, {"text_config": {"rope_scaling": YARN}}).section("text_config")
    assert text.rotary()["mrope_section"] == [8, 4, 4]
    config = transformers.AutoConfig.from_pretrained(folder)
    config.text_config.rope_parameters |= YARN
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, config=config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with Reranker(
        folder, device="cpu", dtype="float32", hf_overrides={"text_config": {"rope_scaling": YARN}}
    ) as reranker:
        scores = reranker.score(PAIRS[:6])
        requests = [RerankRequest(text_content(query), (text_content(document),)) for query, document in PAIRS[:6]]
        prompts = [reranker._prompts.build(request) for request in requests]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt.prefix.token_ids + prompt.suffixes[0].token_ids])
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1]
        yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
        expected.append(float((logits[yes] - logits[no]).sigmoid()))
    assert scores == pytest.approx(expected, abs=1e-5)
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        assert reranker.score(PAIRS[:6]) != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "longrope"),
        ({"rope_type": "longrope"}, "longrope"),
        ({"rope_type": "yarn", "factor": 0}, "factor"),
        ({"rope_type": "yarn", "factor": "4"}, "factor"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 1}, "low_freq_factor"),
        ({"rope_type": 3}, "rope_type"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": "x"}, "rope_theta"),
        ({"rope_theta": None}, "rope_theta"),
    ],
)
def test_what_is_no_rotary_embedding_is_named(rope: dict[str, Any], said: str) -> None:
    entries = {"max_position_embeddings": 1024, "rope_parameters": {"rope_theta": 1e4} | rope}
    with pytest.raises(ModelError, match=said) as raised:
        Config(entries, "config.json").rope()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["x", [], 3, True])
def test_a_section_of_another_form_is_named(qwen3_checkpoint: Path, name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=name):
        Config({"rope_theta": 1e4, name: value}, "config.json").rope()
    with pytest.raises(ModelError, match=name):
        read_config(qwen3_checkpoint, {name: value})
