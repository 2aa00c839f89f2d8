"""Scores against independent implementations, and their independence of everything that should not matter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from rerankd import Reranker
from rerankd.backends.cpu import backend, runtime
from rerankd.backends.cpu.native import Kernels
from tests import checkpoints, references
from tests.conftest import MakeCheckpoint
from tests.references import Pair
from tests.texts import DOCUMENTS, QUERIES

PAIRS: list[Pair] = [(query, document) for i, query in enumerate(QUERIES[::3]) for document in DOCUMENTS[i % 2 :: 2]]
"""Several queries, each against documents of 1 to 300 words and several scripts."""


def largest_difference(scores: Sequence[float], expected: Sequence[float]) -> float:
    assert len(scores) == len(expected)
    return max(abs(a - b) for a, b in zip(scores, expected, strict=True))


def spread(scores: Sequence[float]) -> float:
    return max(scores) - min(scores)


def test_the_pairs_are_many_and_varied() -> None:
    assert len(PAIRS) >= 64
    assert len({len(document.split()) for _, document in PAIRS}) >= 15


FEW = PAIRS[::5]
"""Enough where a variant differs from one that all pairs are scored by in how its head or its files are read."""

Reference = Callable[[Path, Sequence[Pair]], list[float]]
old = checkpoints.Storage(old_keys=True)
variants: list[tuple[str, Callable[..., Path], dict[str, Any], Reference, list[Pair]]] = [
    ("qwen3", checkpoints.qwen3, {}, references.qwen3_scores, PAIRS),
    ("qwen3-untied", checkpoints.qwen3, {"tied": False}, references.qwen3_scores, FEW),
    ("qwen3-old-keys", checkpoints.qwen3, {"storage": old}, references.qwen3_scores, FEW),
    ("qwen3-one-row", checkpoints.qwen3, {"head": "one-row"}, references.qwen3_classifier_scores, PAIRS),
    ("qwen3-two-rows", checkpoints.qwen3, {"head": "two-rows"}, references.qwen3_classifier_scores, FEW),
    ("xlmr", checkpoints.xlmr, {}, references.cross_encoder_scores, PAIRS),
    ("xlmr-two-labels", checkpoints.xlmr, {"labels": 2}, references.cross_encoder_scores, FEW),
    ("roberta", checkpoints.roberta, {}, references.cross_encoder_scores, PAIRS),
    ("bert", checkpoints.bert, {}, references.cross_encoder_scores, PAIRS),
    ("bert-two-labels", checkpoints.bert, {"labels": 2}, references.cross_encoder_scores, FEW),
]
by_name = pytest.mark.parametrize(
    ("maker", "options", "reference", "pairs"), [v[1:] for v in variants], ids=[v[0] for v in variants]
)


@by_name
def test_float32_scores_equal_transformers(
    make_checkpoint: MakeCheckpoint,
    maker: Callable[..., Path],
    options: dict[str, Any],
    reference: Reference,
    pairs: list[Pair],
) -> None:
    folder = make_checkpoint(maker, **options)
    expected = reference(folder, pairs)
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        scores = reranker.score(pairs)
    assert spread(expected) >= 0.2
    assert largest_difference(scores, expected) <= 1e-5


@pytest.mark.parametrize(
    ("maker", "size", "reference"),
    [
        (checkpoints.qwen3, "tiny", references.qwen3_scores),
        (checkpoints.qwen3, "uneven", references.qwen3_scores),
        (checkpoints.xlmr, "tiny", references.cross_encoder_scores),
        (checkpoints.xlmr, "two-heads", references.cross_encoder_scores),
        (checkpoints.xlmr, "uneven", references.cross_encoder_scores),
    ],
)
def test_bfloat16_scores_are_near_transformers_float32(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path], size: str, reference: Reference
) -> None:
    folder = make_checkpoint(maker, size=size, storage=checkpoints.Storage(dtype="bfloat16"))
    expected = reference(folder, PAIRS)
    with Reranker(folder, device="cpu", dtype="bfloat16") as reranker:
        scores = reranker.score(PAIRS)
    assert spread(expected) >= 0.2
    assert largest_difference(scores, expected) <= 0.01


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize(
    ("maker", "size", "is_by_kernels"),
    [
        (checkpoints.qwen3, "tiny", True),
        (checkpoints.qwen3, "uneven", False),
        (checkpoints.qwen3_vl, "tiny", True),
        (checkpoints.xlmr, "two-heads", True),
        (checkpoints.xlmr, "tiny", False),
        (checkpoints.xlmr, "uneven", False),
    ],
)
def test_recorded_operations_change_no_score(
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    maker: Callable[..., Path],
    size: str,
    is_by_kernels: bool,
    quantization: str | None,
) -> None:
    if Kernels.load(torch.bfloat16) is None:
        pytest.skip("no kernels were built, or none for this processor")
    folder = make_checkpoint(maker, size=size)
    calls: list[int] = []
    run = Kernels._run
    monkeypatch.setattr(Kernels, "_run", lambda self, operations: (calls.append(1), run(self, operations)))
    scores, counts = [], []
    for _ in range(2):
        with Reranker(folder, device="cpu", dtype="bfloat16", quantization=quantization) as reranker:
            calls.clear()
            # One request at a time: what goes into a batch does not depend on when the next one comes.
            answers = [reranker.rerank(query, DOCUMENTS) for query in QUERIES[::3]]
            scores.append([one.score for answer in answers for one in answer.in_request_order()])
        counts.append(len(calls))
        monkeypatch.setattr(runtime.Runtime, "recorded", lambda *of: nullcontext)
    assert spread(scores[0]) >= 0.2
    assert scores[0] == scores[1]
    assert (counts[0] < counts[1] / 2) == is_by_kernels


@pytest.mark.parametrize(
    "storage",
    [
        checkpoints.Storage(shards=True),
        checkpoints.Storage(weights="bin"),
        checkpoints.Storage(weights="bin", shards=True),
    ],
    ids=["sharded", "bin", "bin-sharded"],
)
def test_how_the_weights_lie_on_disk_does_not_matter(
    make_checkpoint: MakeCheckpoint, qwen3_checkpoint: Path, storage: checkpoints.Storage
) -> None:
    results = []
    for folder in (qwen3_checkpoint, make_checkpoint(checkpoints.qwen3, storage=storage)):
        with Reranker(folder, device="cpu", dtype="float32") as reranker:
            results.append(reranker.score(PAIRS[:8]))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "maker", [checkpoints.qwen3, checkpoints.qwen3_vl, checkpoints.xlmr, checkpoints.xlmr_embedder]
)
def test_the_rows_of_a_row_tile_do_not_matter(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, maker: Callable[..., Path], dtype: str
) -> None:
    folder = make_checkpoint(maker)
    pairs = PAIRS[: len(PAIRS) // 2]
    with Reranker(folder, device="cpu", dtype=dtype) as reranker:
        whole = reranker.score(pairs)
    monkeypatch.setattr(backend, "_row_tile", lambda kernels: (1, 32))
    assert backend.CpuBackend(getattr(torch, dtype)).runtime.rows_per_tile(64) == 32
    with Reranker(folder, device="cpu", dtype=dtype) as reranker:
        assert largest_difference(reranker.score(pairs), whole) <= (1e-6 if dtype == "float32" else 5e-3)


def test_an_instruction_reaches_the_prompt(qwen3_checkpoint: Path) -> None:
    pairs, instruction = PAIRS[:12], "Find passages that contradict the query: strictly"
    expected = references.qwen3_scores(qwen3_checkpoint, pairs, instruction)
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32") as reranker:
        assert largest_difference(reranker.score(pairs, instruction), expected) <= 1e-5
        assert largest_difference(reranker.score(pairs), expected) > 1e-3
    with Reranker(qwen3_checkpoint, device="cpu", dtype="float32", default_instruction=instruction) as reranker:
        assert largest_difference(reranker.score(pairs), expected) <= 1e-5


OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}


def test_vllms_overrides_are_honoured_and_not_needed(qwen3_checkpoint: Path) -> None:
    results = []
    for overrides in ({}, OVERRIDES, OVERRIDES | {"classifier_from_token": ["yes", "no"]}):
        with Reranker(qwen3_checkpoint, device="cpu", dtype="float32", hf_overrides=overrides) as reranker:
            results.append(reranker.score(PAIRS[:8]))
    plain, overridden, swapped = results
    assert plain == overridden
    assert largest_difference([1 - score for score in swapped], plain) < 1e-6


@pytest.mark.parametrize("maker", [checkpoints.xlmr, checkpoints.roberta, checkpoints.bert])
def test_cross_encoders_equal_sentence_transformers(
    make_checkpoint: MakeCheckpoint, maker: Callable[..., Path]
) -> None:
    folder = make_checkpoint(maker)
    expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS, convert_to_numpy=True).tolist()
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        assert largest_difference(reranker.score(PAIRS), expected) <= 1e-5


@pytest.mark.parametrize("key", ["new", "old"])
def test_a_declared_activation_is_that_of_sentence_transformers(
    bert_checkpoint: Path, tmp_path: Path, key: str
) -> None:
    folder = Path(shutil.copytree(bert_checkpoint, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    name = "torch.nn.modules.linear.Identity"
    config |= (
        {"sentence_transformers": {"activation_fn": name}}
        if key == "new"
        else {"sbert_ce_default_activation_function": name}
    )
    (folder / "config.json").write_text(json.dumps(config))
    expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS, convert_to_numpy=True).tolist()
    assert min(expected) < 0
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        assert largest_difference(reranker.score(PAIRS), expected) <= 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"pooling": "mean"}, {"prompts": {"query": "query: ", "document": "passage: "}}]
)
def test_bi_encoders_equal_sentence_transformers(make_checkpoint: MakeCheckpoint, options: dict[str, Any]) -> None:
    expect_cosines(make_checkpoint(checkpoints.xlmr_embedder, **options))


def test_the_real_minilm_equals_sentence_transformers(minilm_path: Path) -> None:
    expect_cosines(minilm_path)


def expect_cosines(folder: Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    queries = model.encode_query([query for query, _ in PAIRS], convert_to_tensor=True, normalize_embeddings=True)
    documents = model.encode_document([d for _, d in PAIRS], convert_to_tensor=True, normalize_embeddings=True)
    expected = (queries * documents).sum(1).tolist()
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        assert largest_difference(reranker.score(PAIRS), expected) <= 1e-5
    assert spread(expected) >= 0.1


@pytest.fixture(params=["qwen3", "xlmr", "embedder"])
def folder(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Path:
    maker = {"qwen3": checkpoints.qwen3, "xlmr": checkpoints.xlmr, "embedder": checkpoints.xlmr_embedder}
    return make_checkpoint(maker[request.param])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("budget", [1, 300, 1000, 100_000])
def test_batch_budget_and_order_do_not_matter(folder: Path, dtype: str, tolerance: float, budget: int) -> None:
    query, documents = QUERIES[2], list(DOCUMENTS)
    with Reranker(folder, device="cpu", dtype=dtype) as reranker:
        alone = [reranker.rerank(query, [document]).documents[0].score for document in documents]
    with Reranker(folder, device="cpu", dtype=dtype, max_batch_tokens=budget) as reranker:
        together = [d.score for d in reranker.rerank(query, documents).in_request_order()]
        shuffled = list(range(len(documents)))
        Random(5).shuffle(shuffled)
        result = reranker.rerank(query, [documents[i] for i in shuffled]).in_request_order()
    moved = {shuffled[document.index]: document.score for document in result}
    assert largest_difference(together, alone) <= tolerance
    assert largest_difference([moved[i] for i in range(len(documents))], alone) <= tolerance
