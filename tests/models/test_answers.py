"""Which tokens' logits score, by vLLM's overrides: against transformers' logits, and refused where vLLM refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rerankd import Reranker
from rerankd.core import ModelError
from tests.references import QWEN3_INSTRUCTION, QWEN3_PROMPT
from tests.texts import DOCUMENTS, QUERIES

PAIRS = [(query, document) for query in QUERIES[::5] for document in DOCUMENTS[::4]]


@torch.inference_mode()
def token_scores(folder: Path, tokens: Sequence[str]) -> list[float]:
    """The sigmoid of the logit of one token, or of the second of two less the first."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    scores = []
    for query, document in PAIRS:
        prompt = QWEN3_PROMPT.format(instruction=QWEN3_INSTRUCTION, query=query, document=document)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        chosen = model(**inputs, logits_to_keep=1).logits[0, -1][ids]
        logit = chosen[0] if len(ids) == 1 else chosen[1] - chosen[0]
        scores.append(logit.sigmoid().item())
    return scores


SERVED: list[tuple[dict[str, Any], list[str]]] = [
    ({"classifier_from_token": ["Yes"]}, ["Yes"]),
    ({"classifier_from_token": ["yes"], "method": "no_post_processing"}, ["yes"]),
    ({"classifier_from_token": ["no", "yes"], "method": "from_2_way_softmax"}, ["no", "yes"]),
    ({"classifier_from_token": ["0", "1"]}, ["0", "1"]),
    ({"classifier_from_token": ["0", "1"], "is_original_qwen3_reranker": True}, ["0", "1"]),
    # vLLM's `is_original_qwen3_reranker` sets the method itself.
    (
        {"classifier_from_token": ["0", "1"], "is_original_qwen3_reranker": True, "method": "no_post_processing"},
        ["0", "1"],
    ),
    ({"text_config": {"classifier_from_token": ["Yes"]}}, ["Yes"]),
    ({"classifier_from_token": None, "method": None, "is_original_qwen3_reranker": False}, ["no", "yes"]),
]


@pytest.mark.parametrize(("overrides", "tokens"), SERVED, ids=str)
@pytest.mark.parametrize("checkpoint", ["qwen3_checkpoint", "qwen3_untied_checkpoint"])
def test_scores_are_those_of_the_tokens_logits(
    request: pytest.FixtureRequest, checkpoint: str, overrides: dict[str, Any], tokens: list[str]
) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    expected = token_scores(folder, tokens)
    assert len({round(score, 4) for score in expected}) > len(expected) / 2
    with Reranker(folder, device="cpu", dtype="float32", hf_overrides=overrides) as reranker:
        assert reranker.score(PAIRS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"classifier_from_token": "yes"}, "a list of tokens"),
        ({"classifier_from_token": [2152, 9693]}, "a list of tokens"),
        ({"classifier_from_token": {"no": "yes"}}, "a list of tokens"),
        ({"classifier_from_token": True}, "a list of tokens"),
        ({"classifier_from_token": []}, "two tokens"),
        ({"classifier_from_token": ["a", "b", "c"]}, "two tokens"),
        ({"classifier_from_token": ["yes", "yes"]}, "differ"),
        ({"classifier_from_token": ["not one token at all"]}, "not one token at all"),
        ({"classifier_from_token": ["yes"], "method": "from_2_way_softmax"}, "two tokens"),
        ({"classifier_from_token": ["no", "yes"], "method": "no_post_processing"}, "one token"),
        ({"classifier_from_token": ["yes"], "is_original_qwen3_reranker": True}, "two tokens"),
    ],
    ids=str,
)
def test_what_names_no_score_is_refused(qwen3_checkpoint: Path, overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match="`classifier_from_token`") as raised:
        Reranker(qwen3_checkpoint, device="cpu", hf_overrides=overrides)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["no_post_processing", "mean", 3, ["from_2_way_softmax"], {}])
def test_a_method_without_tokens_or_unknown_is_refused(qwen3_checkpoint: Path, method: Any) -> None:
    with pytest.raises(ModelError, match="`method`"):
        Reranker(qwen3_checkpoint, device="cpu", hf_overrides={"method": method})


def test_tokens_without_effect_are_told_of(qwen3_seq_cls_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores = []
    for overrides in ({}, {"classifier_from_token": ["no", "yes"]}):
        caplog.clear()
        with Reranker(qwen3_seq_cls_checkpoint, device="cpu", dtype="float32", hf_overrides=overrides) as reranker:
            scores.append(reranker.score(PAIRS))
        assert ("classifier_from_token` has no effect" in caplog.text) == bool(overrides)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # batches, and so the last digits, depend on time
