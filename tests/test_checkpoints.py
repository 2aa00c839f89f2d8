"""The test checkpoints are worth testing against: libraries read every variant, and the scores say something."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from tests import checkpoints, texts
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint

PROMPT = "Judge.\nQuery: {}\nDocument: {}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def encoder_scores(folder: Path, pairs: int = 32) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, document in texts.pairs(pairs):
        encoded = tokenizer(query, document, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        scores.append(float(logits.sigmoid() if len(logits) == 1 else logits.softmax(-1)[1]))
    return scores


def decoder_scores(folder: Path) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, document in texts.pairs(32):
        encoded = tokenizer(PROMPT.format(query, document), return_tensors="pt")
        with torch.no_grad():
            if "CausalLM" in kind.__name__ or "Conditional" in kind.__name__:
                logits = model(**encoded, logits_to_keep=1).logits[0, -1, [checkpoints.NO, checkpoints.YES]]
            else:
                logits = model(**encoded).logits[0]
        scores.append(float(logits.sigmoid() if len(logits) == 1 else logits.softmax(-1)[1]))
    return scores


@pytest.mark.parametrize(
    "checkpoint",
    [
        "xlmr_checkpoint",
        "xlmr_two_labels_checkpoint",
        "roberta_checkpoint",
        "bert_checkpoint",
        "bert_two_labels_checkpoint",
        "qwen3_checkpoint",
        "qwen3_untied_checkpoint",
        "qwen3_seq_cls_checkpoint",
        "qwen3_two_rows_checkpoint",
        "qwen3_vl_checkpoint",
    ],
)
def test_scores_spread(checkpoint: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    scores = decoder_scores(folder) if checkpoint.startswith("qwen3") else encoder_scores(folder)
    assert max(scores) - min(scores) >= 0.25
    assert min(scores) > 0.05
    assert max(scores) < 0.95


@pytest.mark.parametrize(
    "storage",
    [Storage(shards=True), Storage(weights="bin"), Storage(weights="bin", shards=True), Storage(old_keys=True)],
    ids=str,
)
def test_every_storage_holds_the_same_model(
    storage: Storage, make_checkpoint: MakeCheckpoint, xlmr_checkpoint: Path, qwen3_checkpoint: Path
) -> None:
    variant = make_checkpoint(checkpoints.xlmr, storage=storage)
    assert encoder_scores(variant, 4) == pytest.approx(encoder_scores(xlmr_checkpoint, 4), abs=1e-6)
    config = transformers.AutoConfig.from_pretrained(make_checkpoint(checkpoints.qwen3, storage=storage))
    expected = transformers.AutoConfig.from_pretrained(qwen3_checkpoint)
    assert config.rope_parameters == expected.rope_parameters
    assert config.dtype == expected.dtype


def test_the_embedder_is_read_by_sentence_transformers(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(checkpoints.xlmr_embedder, prompts={"query": "query: "})
    model = SentenceTransformer(str(folder), device="cpu")
    query = model.encode_query(texts.QUERIES[0])
    documents = model.encode_document(list(texts.DOCUMENTS))
    assert math.isclose(float((query**2).sum()), 1, abs_tol=1e-5)
    cosines = documents @ query
    assert cosines.max() - cosines.min() >= 0.2
