"""Qwen3 decoders with a rule of their own, against transformers' logits under their authors' rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rerankd import Reranker
from rerankd.inspection import inspect
from rerankd.loading import plan
from rerankd.options import LoadOptions
from tests import checkpoints
from tests.conftest import MakeCheckpoint
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[::4] for document in DOCUMENTS[::2]]
INSTRUCTION = "Prefer what is new."
YES, EXCLAMATION = 9454, 0


def zerank_prompt(query: str, document: str, instruction: str | None) -> str:
    if instruction:
        query = f"<query>{query}</query>\n<instruction>{instruction}</instruction>"
    turns = [("system", query.strip()), ("user", document.strip())]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def ctxl_prompt(query: str, document: str, instruction: str | None) -> str:
    after = f" {instruction}" if instruction else ""
    return (
        "Check whether a given document contains information helpful to answer the query.\n"
        f"<Document> {document}\n<Query> {query}{after} ??"
    )


@dataclass(frozen=True)
class Rule:
    """An authors' rule: the prompt, the token whose logit is read, and the score that is made of the logit."""

    prompt: Callable[[str, str, str | None], str]
    token: int
    score: Callable[[torch.Tensor], torch.Tensor]
    spread: float


RULES = {
    "zerank": Rule(zerank_prompt, YES, lambda logit: (logit / 5).sigmoid(), 4.0),
    "ctxl-rerank": Rule(ctxl_prompt, EXCLAMATION, lambda logit: logit, 0.4),
}


def made(make_checkpoint: MakeCheckpoint, name: str, **options: Any) -> Path:
    rule = RULES[name]
    return make_checkpoint(checkpoints.qwen3, answers=(rule.token,), spread=rule.spread, **options)


@torch.inference_mode()
def reference(folder: Path, rule: Rule, instruction: str | None = None) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, document in PAIRS:
        inputs = tokenizer(rule.prompt(query, document, instruction), return_tensors="pt", add_special_tokens=False)
        scores.append(float(rule.score(model(**inputs, logits_to_keep=1).logits[0, -1, rule.token])))
    return scores


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_the_authors(make_checkpoint: MakeCheckpoint, name: str, tied: bool) -> None:
    folder = made(make_checkpoint, name, tied=tied)
    expected = reference(folder, RULES[name])
    assert len(PAIRS) >= 40
    assert max(expected) - min(expected) >= 0.2
    with Reranker(folder, device="cpu", dtype="float32", recipe=name) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)
    # Another model's rule gives other scores.
    with Reranker(folder, device="cpu", dtype="float32", recipe="qwen3-reranker") as reranker:
        others = reranker.score(PAIRS)
    assert max(abs(a - b) for a, b in zip(others, expected, strict=True)) > 0.05


@pytest.mark.parametrize("name", RULES)
def test_an_instruction(make_checkpoint: MakeCheckpoint, name: str) -> None:
    folder = made(make_checkpoint, name)
    expected = reference(folder, RULES[name], INSTRUCTION)
    with Reranker(folder, device="cpu", dtype="float32", recipe=name) as reranker:
        assert reranker.score(PAIRS, INSTRUCTION) == pytest.approx(expected, abs=1e-5)
        assert reranker.score(PAIRS) != pytest.approx(expected, abs=1e-3)
    with Reranker(folder, device="cpu", dtype="float32", recipe=name, default_instruction=INSTRUCTION) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_bfloat16(make_checkpoint: MakeCheckpoint, name: str) -> None:
    folder = made(make_checkpoint, name, storage=checkpoints.Storage(dtype="bfloat16"))
    expected = reference(folder, RULES[name])
    with Reranker(folder, device="cpu", dtype="bfloat16", recipe=name) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(
    ("name", "head", "activation"),
    [("zerank", "logit of 'Yes', divided by 5", "sigmoid"), ("ctxl-rerank", "logit of '!'", "identity")],
)
def test_an_inspection(make_checkpoint: MakeCheckpoint, name: str, head: str, activation: str) -> None:
    inspection = inspect(plan(LoadOptions(str(made(make_checkpoint, name)), device="cpu", recipe=name)))
    assert (inspection.head, inspection.activation, inspection.not_understood) == (head, activation, ())
    assert inspection.prompts == (RULES[name].prompt("what is panda?", "The giant panda is a bear.", None),)


def test_white_space_around_zeranks_texts_goes(make_checkpoint: MakeCheckpoint) -> None:
    folder = made(make_checkpoint, "zerank")
    with Reranker(folder, device="cpu", dtype="float32", recipe="zerank") as reranker:
        assert reranker.score([(" q\n", "\td  ")]) == pytest.approx(reranker.score([("q", "d")]), abs=1e-6)


def test_tokens_that_the_user_names_have_vllms_score(make_checkpoint: MakeCheckpoint) -> None:
    """vLLM's `no_post_processing` divides by nothing, and its score is a sigmoid."""
    folder = made(make_checkpoint, "zerank")
    overrides = {"classifier_from_token": ["Yes"], "method": "no_post_processing"}
    rule = Rule(zerank_prompt, YES, torch.sigmoid, 4.0)
    with Reranker(folder, device="cpu", dtype="float32", recipe="zerank", hf_overrides=overrides) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(reference(folder, rule), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("zerank-2", "zerank"),
        ("zerank-1-small", "zerank"),
        ("zeroentropy_zerank-1", "zerank"),
        ("ctxl-rerank-v2-instruct-multilingual-1b", "ctxl-rerank"),
    ],
)
def test_they_are_known_by_name(qwen3_checkpoint: Path, tmp_path: Path, name: str, recipe: str) -> None:
    (tmp_path / name).symlink_to(qwen3_checkpoint)
    assert plan(LoadOptions(str(tmp_path / name), device="cpu")).choice.recipe.name == recipe
