"""llama-nemotron-rerank against transformers' Llama with a mask that hides nothing, under the authors' rule."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from rerankd import Reranker, Truncation
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.decoder_checkpoints import BEGIN, nemotron
from tests.encoder_checkpoints import edit
from tests.models.test_recipes import refusal
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[::4] for document in DOCUMENTS[::2]]
VARIANTS: list[dict[str, Any]] = [{}, {"pooling": "cls"}, {"temperature": 0.5}, {"labels": 2}]


@torch.inference_mode()
def reference(folder: Path, max_length: int = 2048, causal: bool = False, **variant: Any) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    config = LlamaConfig.from_pretrained(folder, attn_implementation="eager")
    model = LlamaModel(config).eval()
    model.load_state_dict({name[6:]: tensor for name, tensor in weights.items() if name.startswith("model.")})
    scores = []
    for query, document in PAIRS:
        text = f"question:{query} \n \n passage:{document}"
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        mask = None if causal else torch.zeros(1, 1, length, length)
        states = model(inputs["input_ids"], attention_mask=mask).last_hidden_state[0]
        pooled = states[0] if variant.get("pooling") == "cls" else states.mean(0)
        logits = weights["score.weight"] @ pooled / variant.get("temperature", 1.0)
        scores.append(float(logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(0)[1]))
    return scores


def found(folder: Path, dtype: str = "float32", **options: Any) -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, **options) as reranker:
        return reranker.score(PAIRS)


def differ(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_scores_are_the_authors(make_checkpoint: MakeCheckpoint, variant: dict[str, Any]) -> None:
    folder = make_checkpoint(nemotron, **variant)
    expected = reference(folder, **variant)
    assert len(PAIRS) >= 40
    assert max(expected) - min(expected) >= 0.2
    assert found(folder) == pytest.approx(expected, abs=1e-5)
    # A causal Llama of the same weights has other scores, but for the first token's.
    if variant.get("pooling") != "cls":
        assert differ(reference(folder, causal=True, **variant), expected) > 1e-2


def test_bfloat16(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(nemotron, storage=Storage(dtype="bfloat16"))
    assert found(folder, "bfloat16") == pytest.approx(reference(folder), abs=1e-2)


def test_a_request_of_many_documents_shares_nothing(make_checkpoint: MakeCheckpoint) -> None:
    folder, query = make_checkpoint(nemotron), PAIRS[0][0]
    documents = [document for asked, document in PAIRS if asked == query]
    expected = [score for (asked, _), score in zip(PAIRS, reference(folder), strict=True) if asked == query]
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        result = reranker.rerank(query, documents)
    assert len(documents) > 5
    scores = [item.score for item in sorted(result.documents, key=lambda item: item.index)]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert result.computed_tokens == result.prompt_tokens


def test_a_text_is_cut_at_its_end(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(nemotron)
    expected = reference(folder, max_length=60)
    assert differ(expected, reference(folder)) > 1e-3
    short = [i for i, (query, _) in enumerate(PAIRS) if len(query) < 100]
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        scores = [
            reranker.rerank(*pair[:1], list(pair[1:]), truncation=Truncation(max_tokens=60)).documents[0].score
            for pair in PAIRS
        ]
    assert len(short) > 10
    assert [scores[i] for i in short] == pytest.approx([expected[i] for i in short], abs=1e-5)


def test_an_inspection(make_checkpoint: MakeCheckpoint) -> None:
    inspection = inspect(plan(LoadOptions(str(make_checkpoint(nemotron)), device="cpu")))
    assert (inspection.recipe, inspection.head) == ("nemotron-rerank", "classifier of 1 label")
    assert inspection.prompts == (f"{BEGIN}question:what is panda? \n \n passage:The giant panda is a bear.",)
    assert any("auto_map" in said for said in inspection.not_understood)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"pooling": "last"}, "pooling"),
        ({"temperature": 0}, "temperature"),
        ({"attention_bias": True}, "attention_bias"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "3 labels"),
        ({"architectures": ["LlamaBidirectionalModel"]}, "LlamaBidirectionalModel"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
    ],
)
def test_others_are_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path, entries: Any, said: str) -> None:
    folder = Path(shutil.copytree(make_checkpoint(nemotron), tmp_path / "model"))
    edit(folder, **entries)
    with pytest.raises(ModelError, match=said) as raised:
        plan(LoadOptions(str(folder), device="cpu")).load()
    assert "\n" not in str(raised.value)


def test_what_it_has_no_use_for_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(nemotron)
    assert "no use" in refusal(folder, chat_template="{{ messages[0].content }}")
    assert "no use" in refusal(folder, default_instruction="Find it.")
    assert "choose nemotron-rerank" in refusal(folder, recipe="cross-encoder")


def test_a_tokenizer_without_its_first_token(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_checkpoint(nemotron), tmp_path / "model"))
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("begin_of_text", "start_of_text"))
    with pytest.raises(ModelError, match="begin_of_text"):
        plan(LoadOptions(str(folder), device="cpu")).load()
