"""llama-nemotron-rerank-vl: what nvidia's processor does with the settings in processor_config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rerankd import ModelError, Reranker
from rerankd.core import RerankRequest, Text
from rerankd.loading import plan
from rerankd.media.tiles import Tiles
from rerankd.models.checkpoint.config import Config, read_config
from rerankd.models.llama_nemotron_vl import processed
from rerankd.models.recipes.nemotron import NEMOTRON_RERANK_VL
from rerankd.options import LoadOptions
from tests.conftest import MakeCheckpoint
from tests.models.test_nemotron_vl import SEEN, TEXTS, Document, Reference, content
from tests.models.test_odd_configs import VALUES
from tests.pairs import SQUARE, TALL, WIDE
from tests.texts import QUERIES
from tests.visual_checkpoints import nemotron_vl

PROCESSORS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"most": 2}),
    ({"max_input_tiles": 4, "image_size": 448, "norm_type": "imagenet"}, {"most": 4}),
    ({"max_input_tiles": 5, "use_thumbnail": False}, {"most": 5, "whole": False}),
    ({"max_input_tiles": 4, "dynamic_image_size": False}, {"most": 1}),
    ({"max_input_tiles": 1, "rerank_max_length": 40}, {"most": 1, "length": 40}),
    ({"rerank_max_length": 20000}, {"most": 2, "length": 16384}),
]
"""What processor_config.json has, and what nvidia's processor does then. config.json's `max_input_tiles` is another."""


@pytest.mark.parametrize(("entries", "rule"), PROCESSORS)
def test_the_folders_processor_decides(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, entries: dict[str, Any], rule: dict[str, Any]
) -> None:
    copied, without_weights = tmp_path / "model", shutil.ignore_patterns("*.safetensors")
    shutil.copytree(make_checkpoint(nemotron_vl, side=64), copied, ignore=without_weights)
    (copied / "processor_config.json").write_text(json.dumps(entries))
    reference = Reference(copied, 64, **rule)
    planned = plan(LoadOptions(str(copied), device="cpu"))
    assert planned.prompts.max_tokens == reference.length
    shown = [image for image in (SQUARE, TALL, WIDE) if rule.get("length", 100) > 40 or image is SQUARE]
    documents: list[Document] = [*TEXTS[:4], *(("", image) for image in shown)]
    loader = planned.media_loader()
    assert loader is not None
    with loader:
        request = RerankRequest((Text(QUERIES[1]),), tuple(map(content, documents)))
        group = planned.prompts.build(request, loader.load_blocking(request).visuals)
    for suffix, document in zip(group.suffixes, documents, strict=True):
        assert suffix.token_ids == reference.ids(QUERIES[1], document)
        for visual in suffix.visuals:
            assert document[1] is not None
            tiles = reference.tiles(document[1])
            patches = visual.pixel_values().view(len(tiles), 2, 2, 2, 2, 3, 16, 16)
            assert torch.equal(patches.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(tiles), 3, 64, 64), tiles)


def test_odd_settings_of_a_processor_are_refused_by_name(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    config = read_config(make_checkpoint(nemotron_vl, side=64), {})
    beside, file = Config(config.entries, str(tmp_path / "config.json")), tmp_path / "processor_config.json"
    assert processed(beside, NEMOTRON_RERANK_VL).sizing.tiles == Tiles(64, 6)  # without the file the card's
    named = {
        "max_input_tiles": [65, 7.0], "use_thumbnail": [1], "dynamic_image_size": ["no"], "force_image_size": [512],
        "num_image_token": [256], "prompt_template": ["v2"], "rerank_max_length": [2**31],
    }  # fmt: skip
    for name, values in named.items():
        for value in [*VALUES, *values]:
            file.write_text(json.dumps({name: value}))
            try:
                recipe = processed(beside, NEMOTRON_RERANK_VL)
            except ModelError as error:
                said = str(error)
            else:
                said = ""
            if said:
                assert f"`{name}`" in said
                assert "\n" not in said
                continue
            assert not any(value is one for one in values)
            tiles = recipe.sizing.tiles
            assert tiles is not None
            assert (tiles.most, tiles.whole, recipe.max_tokens) == {
                ("max_input_tiles", 7): (7, True, None), ("use_thumbnail", False): (2, False, None),
                ("dynamic_image_size", False): (1, True, None), ("rerank_max_length", 7): (2, True, 7),
                ("rerank_max_length", 10**9): (2, True, 10**9),
            }.get((name, value) if type(value) in (int, bool) else (), (2, True, None)), (name, value)  # fmt: skip
    file.write_text("[]")
    with pytest.raises(ModelError, match="processor_config"):
        processed(beside, NEMOTRON_RERANK_VL)


def test_a_folder_of_sentence_transformers_has_the_processors_prompt(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """nvidia's processor writes prompts there too, and not the chat template, which is vLLM's."""
    copied = Path(shutil.copytree(make_checkpoint(nemotron_vl, side=64), tmp_path / "model"))
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (copied / "modules.json").write_text(json.dumps(modules))
    settings = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    (copied / "config_sentence_transformers.json").write_text(json.dumps(settings))
    message = {"method": "forward", "method_output_name": "logits", "format": "structured"}
    own = {"transformer_task": "sequence-classification", "modality_config": {"message": message}}
    (copied / "sentence_bert_config.json").write_text(json.dumps(own))
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[0].text }} {% endfor %}")
    reference = Reference(copied, 64)
    documents: list[Document] = [*TEXTS[:3], SEEN[0]]
    with Reranker(copied, device="cpu", dtype="float32") as reranker:
        found = [one.score for one in reranker.rerank(QUERIES[1], list(map(content, documents))).in_request_order()]
    expected = [torch.tensor(reference.score(QUERIES[1], document)).logit().item() for document in documents]
    assert found == pytest.approx(expected, abs=1e-4)
