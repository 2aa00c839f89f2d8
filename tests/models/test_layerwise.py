"""Rerankers that may be scored after fewer layers, against transformers' layers under FlagEmbedding's rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model, LlamaConfig, LlamaModel

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.models.layerwise import CUTOFF
from rerankd.options import LoadOptions
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.layerwise_checkpoints import LAYERS, START, gemma2, minicpm
from tests.models.test_piece_decoders import PAIRS, differ
from tests.models.test_recipes import refusal

QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
PREDICTION = "Predict whether passage B contains an answer to query A."


@dataclass(frozen=True)
class Family:
    """How FlagEmbedding scores: what the prompt begins with and asks, the states, and the row of scores."""

    make: Callable[..., Path]
    begin: str
    question: str
    states: Callable[[Path, Any, int, list[list[int]]], list[torch.Tensor]]
    row: Callable[[int], int]

    @cache  # noqa: B019 - of two families, each there until the end
    @torch.inference_mode()
    def scores(
        self, folder: Path, cutoff: int, question: str | None = None, ratio: int = 1, layers: tuple[int, ...] = ()
    ) -> list[float]:
        """The scores of PAIRS after `cutoff` layers, in float32.

        ratio, layers: the tokens of a document that become one, and after which layers
        """
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        row = tensors[f"lm_head.{self.row(cutoff)}.linear_head.weight"][0]
        prompts, around = [], []
        for query, document in PAIRS:
            pieces = [f"A: {query}", "\n", f"B: {document}", "\n", question or self.question]
            ids = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
            # FlagEmbedding's limits: of the query, the document, and both with what stands before and between.
            ids[0], ids[2] = ids[0][:384], ids[2][:512]
            ids[2] = ids[2][: 512 + len(ids[3]) + len(ids[4]) - 1 - len(ids[0]) - len(ids[1])]
            around.append((1 + len(ids[0]) + len(ids[1]), len(ids[3]) + len(ids[4])))
            prompts.append([tokenizer.convert_tokens_to_ids(self.begin), *(token for piece in ids for token in piece)])
        cap = json.loads((folder / "config.json").read_text()).get("final_logit_softcapping")
        if ratio == 1:
            found_states = self.states(folder, tensors, cutoff, prompts)
        else:
            found_states = compressed_states(folder, tensors, cutoff, prompts, around, ratio, layers)
        logits = torch.stack([states @ row for states in found_states])
        found: list[float] = (logits if cap is None else cap * torch.tanh(logits / cap)).tolist()
        return found


def weights_of(tensors: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Those of the model without its rows of scores, and without the layers behind the first `layers`."""
    behind = tuple(f"model.layers.{i}." for i in range(layers, LAYERS))
    return {n[6:]: t for n, t in tensors.items() if n.startswith("model.") and not n.startswith(behind)}


def config_of(folder: Path, kind: Any, model_type: str) -> Any:
    entries = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    return kind(**entries, attn_implementation="eager")


def minicpm_states(folder: Path, tensors: Any, cutoff: int, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Llama's modules, with MiniCPM's two factors between them."""
    config = config_of(folder, LlamaConfig, "llama")
    model = LlamaModel(config).eval()
    model.load_state_dict(weights_of(tensors, LAYERS))
    found = []
    for ids in prompts:
        x = model.embed_tokens(torch.tensor([ids])) * config.scale_emb
        rotation = model.rotary_emb(x, torch.arange(len(ids))[None])
        mask = torch.full((1, 1, len(ids), len(ids)), float("-inf")).triu(1)
        for layer in model.layers[:cutoff]:
            factor = config.scale_depth / LAYERS**0.5
            normed = layer.input_layernorm(x)
            x = x + factor * layer.self_attn(normed, position_embeddings=rotation, attention_mask=mask)[0]
            x = x + factor * layer.mlp(layer.post_attention_layernorm(x))
        found.append(model.norm(x)[0, -1])
    return found


def gemma2_states(folder: Path, tensors: Any, cutoff: int, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Gemma 2 of `cutoff` layers."""
    config = config_of(folder, Gemma2Config, "gemma2")
    config.num_hidden_layers, config.layer_types = cutoff, config.layer_types[:cutoff]
    # FlagEmbedding computes attention in a way that has no bound of logits.
    config.attn_logit_softcapping = None
    model = Gemma2Model(config).eval()
    model.load_state_dict(weights_of(tensors, cutoff))
    return [model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in prompts]


def compressed_states(
    folder: Path,
    tensors: Any,
    cutoff: int,
    prompts: list[list[int]],
    around: list[tuple[int, int]],
    ratio: int,
    compressing: tuple[int, ...],
) -> list[torch.Tensor]:
    """Gemma 2 of `cutoff` layers, of which some find the mean of each `ratio` tokens' states in a document as one.

    around: of each prompt, the tokens before its document and those behind it
    """
    config = config_of(folder, Gemma2Config, "gemma2")
    config.num_hidden_layers, config.layer_types = cutoff, config.layer_types[:cutoff]
    config.attn_logit_softcapping = None
    model = Gemma2Model(config).eval()
    model.load_state_dict(weights_of(tensors, cutoff))
    found = []
    for ids, (before, behind) in zip(prompts, around, strict=True):
        x = model.embed_tokens(torch.tensor([ids]))
        for i, layer in enumerate(model.layers):
            if i in compressing:
                document = x[0, before : x.shape[1] - behind]
                means = torch.stack([run.mean(0) for run in document.split(ratio)])
                x = torch.cat([x[0, :before], means, x[0, x.shape[1] - behind :]])[None]
            places = torch.arange(x.shape[1])
            back = places[:, None] - places
            seen = back >= 0
            if config.layer_types[i] == "sliding_attention":
                seen &= back < config.sliding_window
            mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[None, None]
            x = layer(x, position_embeddings=model.rotary_emb(x, places[None]), attention_mask=mask)
        found.append(model.norm(x)[0, -1])
    return found


FAMILIES = {
    "bge-reranker-layerwise": Family(minicpm, "<s>", QUESTION, minicpm_states, lambda cutoff: cutoff - START),
    "bge-reranker-lightweight": Family(gemma2, "<bos>", PREDICTION, gemma2_states, lambda cutoff: 0),
}


def found(folder: Path, dtype: str = "float32", **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        return reranker.score(PAIRS)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_the_authors_after_any_layer(make_checkpoint: MakeCheckpoint, name: str) -> None:
    family, folder = FAMILIES[name], make_checkpoint(FAMILIES[name].make)
    assert len(PAIRS) >= 40
    asked: dict[int, dict[str, Any]] = {START: {"cutoff_layers": START}, LAYERS: {"hf_overrides": {CUTOFF: [LAYERS]}}}
    for cutoff, options in asked.items():
        expected = family.scores(folder, cutoff)
        assert max(expected) - min(expected) >= 0.2
        assert found(folder, **options) == pytest.approx(expected, abs=1e-5)
        assert differ(expected, family.scores(folder, START + LAYERS - cutoff)) > 1e-2


COMPRESSIONS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "each two, twice, and once after the score": (2, (1, 2, 3), 3),
    "each eight": (8, (2,), LAYERS),
}
"""The ratio, the layers, and the layers after which the score is read."""


@pytest.mark.parametrize("case", COMPRESSIONS)
def test_tokens_of_documents_are_compressed(make_checkpoint: MakeCheckpoint, case: str) -> None:
    ratio, layers, cutoff = COMPRESSIONS[case]
    family, folder = FAMILIES["bge-reranker-lightweight"], make_checkpoint(gemma2)
    expected = family.scores(folder, cutoff, None, ratio, layers)
    assert max(expected) - min(expected) >= 0.2
    assert differ(expected, family.scores(folder, cutoff)) > 1e-2
    entries = {"compress_ratio": ratio, "compress_layers": list(layers)}
    assert found(folder, cutoff_layers=cutoff, hf_overrides=entries) == pytest.approx(expected, abs=1e-5)
    # One document alone has nobody to share the query with, and a small batch cuts a request in parts.
    given: dict[str, Any] = {"cutoff_layers": cutoff, "hf_overrides": entries, "max_batch_tokens": 200}
    with Reranker(folder, device="cpu", dtype="float32", **given) as reranker:
        assert [reranker.score([pair])[0] for pair in PAIRS[:2]] == pytest.approx(expected[:2], abs=1e-5)
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_compression_in_bfloat16_and_of_an_instruction(make_checkpoint: MakeCheckpoint) -> None:
    family = FAMILIES["bge-reranker-lightweight"]
    entries = {"compress_ratio": 4, "compress_layers": [1]}
    folder = make_checkpoint(gemma2, storage=Storage(dtype="bfloat16"))
    asked = {"default_instruction": QUESTION, "hf_overrides": entries}
    assert found(folder, "bfloat16", **asked) == pytest.approx(
        family.scores(folder, LAYERS, QUESTION, 4, (1,)), abs=1e-2
    )


def test_an_inspection_of_a_compression(make_checkpoint: MakeCheckpoint) -> None:
    entries = {"compress_ratio": 2, "compress_layers": [1, 2]}
    inspection = inspect(plan(LoadOptions(str(make_checkpoint(gemma2)), device="cpu", hf_overrides=entries)))
    said = "a row of its own after 4 of 4 layers; 2 tokens of a document become one after 1, 2 layers"
    assert (inspection.head, inspection.not_understood) == (said, ())
    # The authors' defaults compress nothing.
    entries = {"compress_ratio": 1, "compress_layers": [8]}
    inspection = inspect(plan(LoadOptions(str(make_checkpoint(gemma2)), device="cpu", hf_overrides=entries)))
    assert inspection.head == "a row of its own after 4 of 4 layers"


@pytest.mark.parametrize("name", FAMILIES)
def test_an_instruction_stands_in_place_of_the_question(make_checkpoint: MakeCheckpoint, name: str) -> None:
    family, folder = FAMILIES[name], make_checkpoint(FAMILIES[name].make)
    other = PREDICTION if family.question == QUESTION else QUESTION
    expected = family.scores(folder, START, other)
    assert differ(expected, family.scores(folder, START)) > 1e-2
    assert found(folder, cutoff_layers=START, default_instruction=other) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16(make_checkpoint: MakeCheckpoint, name: str) -> None:
    folder = make_checkpoint(FAMILIES[name].make, storage=Storage(dtype="bfloat16"))
    assert found(folder, "bfloat16") == pytest.approx(FAMILIES[name].scores(folder, LAYERS), abs=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_inspection(make_checkpoint: MakeCheckpoint, name: str) -> None:
    family, folder = FAMILIES[name], make_checkpoint(FAMILIES[name].make)
    inspection = inspect(plan(LoadOptions(str(folder), device="cpu", cutoff_layers=3)))
    assert (inspection.recipe, inspection.head) == (name, "a row of its own after 3 of 4 layers")
    assert (inspection.activation, inspection.not_understood) == ("identity", ())
    assert inspection.default_instruction == family.question
    assert inspection.prompts[0].endswith(family.question)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("asked", [START - 1, LAYERS + 1, "3", [2, 3], True])
def test_other_layers_are_refused(make_checkpoint: MakeCheckpoint, name: str, asked: Any) -> None:
    folder = make_checkpoint(FAMILIES[name].make)
    with pytest.raises(ModelError, match=r"`cutoff_layers` must be one layer from 2 to 4"):
        plan(LoadOptions(str(folder), device="cpu", hf_overrides={"cutoff_layers": asked})).backend()


def test_what_is_not_scored_so_is_refused(make_checkpoint: MakeCheckpoint, bert_checkpoint: Path) -> None:
    assert "--cutoff-layers: the recipe cross-encoder" in refusal(bert_checkpoint, cutoff_layers=1)
    given = {"compress_ratio": 2, "compress_layers": [1]}
    assert "`compress_ratio`, `compress_layers`: the recipe cross-encoder" in refusal(
        bert_checkpoint, hf_overrides=given
    )
    for maker, entries, said in (
        (minicpm, {"head_type": "raw"}, "head_type"),
        (minicpm, {"head_multi": False}, "head_multi"),
        (gemma2, {"layer_wise": False}, "layer_wise"),
        (minicpm, {"compress_ratio": 2}, "`compress_ratio` is 2; only 1 or None is supported"),
        (gemma2, {"compress_ratio": 3}, "`compress_ratio` must be 1, 2, 4 or 8, not 3"),
        (gemma2, {"compress_ratio": 2.0}, "`compress_ratio` must be 1, 2, 4 or 8, not 2.0"),
        (gemma2, {"compress_ratio": 2}, r"a list of numbers of layers, from 1 to 3, not \[8\]"),
        (gemma2, {"compress_ratio": 2, "compress_layers": [0]}, r"from 1 to 3, not \[0\]"),
        (gemma2, {"compress_ratio": 2, "compress_layers": 2}, "from 1 to 3, not 2"),
        (gemma2, {"compress_ratio": 2, "compress_layers": [3], "cutoff_layers": 2}, "must hold a number below 2"),
        (gemma2, {"layer_sep": 2, "cutoff_layers": 3}, "one layer from 2 to 4 in steps of 2"),
        (gemma2, {"final_logit_softcapping": 0}, "final_logit_softcapping"),
        (gemma2, {"layer_types": ["full_attention"] * 3}, "layer_types"),
        (gemma2, {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            plan(LoadOptions(str(make_checkpoint(maker)), device="cpu", hf_overrides=entries)).load()
    assert "by no labels" in refusal(make_checkpoint(minicpm), label="yes")
