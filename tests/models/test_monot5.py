"""monoT5, over T5 and mT5, against transformers under its authors' rule."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from rerankd import Reranker
from rerankd.core import ModelError
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.encoder_checkpoints import edit
from tests.models.test_piece_decoders import differ
from tests.models.test_recipes import refusal
from tests.t5_checkpoints import NO, YES, mt5, t5
from tests.texts import DOCUMENTS, QUERIES

# Without the longest ones: the authors cut the end of the text, and with it the words that ask.
PAIRS = [(q, d) for q in QUERIES[:-1:3] for d in DOCUMENTS[::2] if len(q) + len(d) < 700]
PROMPT = "Query: {} Document: {} Relevant:"


@cache
@torch.inference_mode()
def reference(folder: Path, prompt: str = PROMPT, words: tuple[str, str] = (NO, YES)) -> list[float]:
    """The logarithm of the probability of "true" against "false" (`words`) as the first token, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = [tokenizer.convert_tokens_to_ids(answer) for answer in words]
    start = torch.tensor([[model.config.decoder_start_token_id]])
    scores = []
    for pair in PAIRS:
        inputs = tokenizer(prompt.format(*pair), return_tensors="pt", return_token_type_ids=False)
        logits = model(**inputs, decoder_input_ids=start).logits[0, -1, answers]
        scores.append(float(logits.log_softmax(0)[1]))
    return scores


def found(folder: Path, dtype: str = "float32", recipe: str = "monot5") -> list[float]:
    with Reranker(folder, device="cpu", dtype=dtype, recipe=recipe) as reranker:
        return reranker.score(PAIRS)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"form": "gated-gelu", "decoder_start_token_id": 7},
        {"tied": False, "form": "gated-gelu", "spread": 0.4},
        {"scale_decoder_outputs": False, "spread": 0.4},
    ],
    ids=str,
)
def test_scores_are_the_authors(make_checkpoint: MakeCheckpoint, form: dict[str, Any]) -> None:
    folder = make_checkpoint(t5, **form)
    expected = reference(folder)
    assert len(PAIRS) >= 40
    assert max(expected) - min(expected) >= 0.2
    assert found(folder) == pytest.approx(expected, abs=1e-5)
    if not form:
        assert differ(expected, reference(folder, "Query: {} Document: {}")) > 1e-2


@pytest.mark.parametrize(
    ("recipe", "words"), [("mt5-mmarco", ("\u2581no", "\u2581yes")), ("mt5-mmarco-large", ("\u2581", "\u2581true"))]
)
def test_scores_over_mt5_are_the_authors(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, recipe: str, words: tuple[str, str]
) -> None:
    folder = make_checkpoint(mt5, answers=words)
    expected = reference(folder, words=words)
    assert max(expected) - min(expected) >= 0.2
    assert found(folder, recipe=recipe) == pytest.approx(expected, abs=1e-5)
    # transformers 5 saves mT5 as tied, and reads the head that is there all the same.
    tied = tmp_path / "tied"
    shutil.copytree(folder, tied)
    edit(tied, tie_word_embeddings=True)
    assert found(tied, recipe=recipe) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mt5-base-mmarco-v2", "mt5-mmarco"),
        ("mt5-base-en-msmarco", "mt5-mmarco"),
        ("mt5-base-en-pt-msmarco-v1", "mt5-mmarco"),
        ("mt5-3B-mmarco-en-pt", "mt5-mmarco-large"),
        ("mt5-13b-mmarco-100k", "mt5-mmarco-large"),
    ],
)
def test_models_over_mt5_are_known_by_name(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, recipe: str
) -> None:
    words = ("\u2581no", "\u2581yes") if recipe == "mt5-mmarco" else ("\u2581", "\u2581true")
    (tmp_path / name).symlink_to(make_checkpoint(mt5, answers=words))
    inspection = inspect(plan(LoadOptions(str(tmp_path / name), device="cpu")))
    assert (inspection.recipe, inspection.max_tokens, tuple(inspection.tokens)) == (recipe, 512, words)


def test_duot5_and_other_mt5_are_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    pairwise, other = tmp_path / "duot5-base-msmarco", tmp_path / "mt5-base"
    pairwise.symlink_to(make_checkpoint(t5))
    said = refusal(pairwise)
    assert "its name is 'duot5-base-msmarco'" in said
    assert "two documents at a time" in said
    assert "serve a monoT5 model" in said
    shutil.copytree(make_checkpoint(mt5), other)
    assert "--recipe monot5 or mt5-mmarco or mt5-mmarco-large" in refusal(other)


def test_bfloat16(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(t5, storage=Storage(dtype="bfloat16"))
    assert found(folder, "bfloat16") == pytest.approx(reference(folder), abs=1e-2)


def test_many_documents_are_scored_as_each_alone(make_checkpoint: MakeCheckpoint) -> None:
    folder, query = make_checkpoint(t5), PAIRS[0][0]
    expected = [score for pair, score in zip(PAIRS, reference(folder), strict=True) if pair[0] == query]
    documents = [document for asked, document in PAIRS if asked == query]
    with Reranker(folder, device="cpu", dtype="float32", recipe="monot5") as reranker:
        ranked = reranker.rerank(query, documents)
        cut = reranker.rerank(query, ["word " * 3000])
    scores = [item.score for item in sorted(ranked.documents, key=lambda item: item.index)]
    assert len(scores) > 5
    assert scores == pytest.approx(expected, abs=1e-5)
    assert (cut.truncated, cut.prompt_tokens) == ((0,), 512)


def test_its_name_is_known_and_another_t5_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    named, other = tmp_path / "monot5-base-msmarco", tmp_path / "flan-t5-base"
    named.symlink_to(make_checkpoint(t5))
    shutil.copytree(named, other)
    choice = plan(LoadOptions(str(named), device="cpu")).choice
    assert (choice.recipe.name, choice.certain) == ("monot5", True)
    said = refusal(other)
    assert "T5ForConditionalGeneration" in said
    assert "--recipe monot5" in said
    assert "takes no" in refusal(named, default_instruction="x") or "no place" in refusal(
        named, default_instruction="x"
    )
    for entries, named_entry in (
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ({"d_kv": 16}, "num_heads"),
    ):
        with pytest.raises(ModelError, match=named_entry):
            plan(LoadOptions(str(named), device="cpu", hf_overrides=entries)).load()


def test_an_inspection(make_checkpoint: MakeCheckpoint) -> None:
    inspection = inspect(plan(LoadOptions(str(make_checkpoint(t5)), device="cpu", recipe="monot5")))
    assert (inspection.architecture, inspection.max_tokens) == ("T5ForConditionalGeneration", 512)
    assert inspection.head == f"logarithm of the probability of {YES!r} against {NO!r}"
    assert (inspection.activation, inspection.not_understood) == ("identity", ())
    assert inspection.prompts[0].endswith("Relevant:</s>")
