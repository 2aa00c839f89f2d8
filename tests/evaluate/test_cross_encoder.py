"""sentence-transformers' evaluators, and mteb's, take rerankd's `CrossEncoder` for a model of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)

from rerankd import CrossEncoder, Reranker

COLLECTION = Path(__file__).parents[1] / "collection"


def read(name: str) -> dict[str, str]:
    lines = map(json.loads, (COLLECTION / name).read_text().splitlines())
    return {one["_id"]: f"{one.get('title', '')} {one['text']}".strip() for one in lines}


QUERIES, CORPUS = read("queries.jsonl"), read("corpus.jsonl")
JUDGED: list[tuple[str, str, int]] = [
    (QUERIES[query], CORPUS[id], int(grade))
    for query, id, grade in (
        line.split("\t") for line in (COLLECTION / "qrels" / "test.tsv").read_text().splitlines()[1:]
    )
]


@pytest.fixture(scope="module")
def ours(bert_checkpoint: Path) -> Iterator[CrossEncoder]:
    with CrossEncoder(str(bert_checkpoint), dtype="float32") as model:
        yield model


@pytest.fixture(scope="module")
def theirs(bert_checkpoint: Path) -> sentence_transformers.CrossEncoder:
    return sentence_transformers.CrossEncoder(str(bert_checkpoint), device="cpu")


def samples() -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for query, document, grade in JUDGED:
        one = found.setdefault(query, {"query": query, "positive": [], "documents": []})
        one["documents"].append(document)
        if grade:
            one["positive"].append(document)
    return list(found.values())


PAIRS = [[query, document] for query, document, _ in JUDGED]
EVALUATORS = [
    CrossEncoderRerankingEvaluator(samples(), name="small", write_csv=False),
    CrossEncoderRerankingEvaluator(
        [{"query": q, "positive": [d], "negative": list(CORPUS.values())[:9]} for q, d, grade in JUDGED if grade == 2],
        write_csv=False,
    ),
    CrossEncoderCorrelationEvaluator(PAIRS, [grade / 2 for *_, grade in JUDGED], write_csv=False),
    CrossEncoderClassificationEvaluator(PAIRS, [int(grade > 0) for *_, grade in JUDGED], write_csv=False),
]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_sentence_transformers_evaluators(
    evaluator: Any, ours: CrossEncoder, theirs: sentence_transformers.CrossEncoder
) -> None:
    found, expected = evaluator(ours), evaluator(theirs)
    assert found == pytest.approx(expected, abs=1e-4)
    assert ours.model_card_data.metrics.keys() & found.keys()
    assert len(set(found.values())) > 1


def test_predict_is_sentence_transformers(ours: CrossEncoder, theirs: sentence_transformers.CrossEncoder) -> None:
    scores = ours.predict(PAIRS)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(theirs.predict(PAIRS), abs=1e-4)
    assert np.ptp(scores) > 0.05
    logits = ours.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=7, num_workers=2)
    assert logits == pytest.approx(theirs.predict(PAIRS, activation_fn=torch.nn.Identity()), abs=1e-3)
    one = ours.predict(tuple(PAIRS[0]))
    assert np.ndim(one) == 0
    assert one == pytest.approx(scores[0], abs=1e-5)
    assert ours.predict(PAIRS[:2]).shape == (2,)
    tensor = ours.predict(PAIRS, convert_to_tensor=True)
    assert torch.is_tensor(tensor)
    assert tensor.tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    for function in (torch.nn.Tanh(), torch.nn.Sigmoid(), lambda logits: 2 * logits - 1):
        found, expected = (model.predict(PAIRS, activation_fn=function) for model in (ours, theirs))
        assert found == pytest.approx(expected, abs=2e-3)
    assert ours.predict(np.array(PAIRS[0])) == pytest.approx(scores[0], abs=1e-5)
    assert ours.predict(np.array(PAIRS[:2])) == pytest.approx(scores[:2], abs=1e-5)
    assert ours.predict(PAIRS[:2], None, None, 16) == pytest.approx(scores[:2], abs=1e-5)
    listed = ours.predict(PAIRS[:2], convert_to_numpy=False)
    assert [type(one) for one in listed] == [torch.Tensor] * 2
    with pytest.raises(ValueError, match="no prompt 'web'"):
        ours.predict(PAIRS, prompt_name="web")


def test_arguments_of_calls_have_the_effect_that_they_have_there(
    ours: CrossEncoder, theirs: sentence_transformers.CrossEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[dict[str, Any]] = [
        {"max_length": 12},
        {"processing_kwargs": {"text": {"max_length": 12, "truncation": True}}},
        {"prompt": "Find pages of the web: "},
    ]
    plain = ours.predict(PAIRS)
    for call in calls:
        found = ours.predict(PAIRS, **call)
        assert found == pytest.approx(theirs.predict(PAIRS, **call), abs=1e-4)
        assert np.abs(found - plain).max() > 1e-3
    # Names of versions before 5.
    assert ours.predict(sentences=PAIRS, activation_fct=torch.nn.Identity()) == pytest.approx(
        ours.predict(PAIRS, activation_fn=torch.nn.Identity()), abs=1e-5
    )
    caplog.clear()
    ours.predict(PAIRS[:2], batch_size=3, num_workers=1, task_metadata=None)
    assert "without effect" not in caplog.text
    ours.predict(PAIRS[:2], normalise=True)
    assert "arguments without effect here: normalise" in caplog.text
    with pytest.raises(ValueError, match="device: the model is on cpu"):
        ours.predict(PAIRS[:2], device=["cuda:0", "cuda:1"])


def test_attributes_and_arguments_of_the_constructor(
    bert_checkpoint: Path, theirs: sentence_transformers.CrossEncoder
) -> None:
    arguments: dict[str, Any] = {
        "device": torch.device("cpu"),
        "num_labels": 1,
        "model_kwargs": {"dtype": torch.float32},
    }
    with CrossEncoder(str(bert_checkpoint), max_length=12, activation_fn=torch.nn.Identity(), **arguments) as model:
        assert (model.max_length, model.reranker.info.dtype) == (12, "float32")
        identity = torch.nn.Identity()
        assert model.predict(PAIRS) == pytest.approx(
            theirs.predict(PAIRS, max_length=12, activation_fn=identity), abs=1e-3
        )
        model.max_length, model.activation_fn = None, None  # type: ignore[assignment]
        assert model.max_seq_length == model.reranker.info.max_model_len
        assert model.predict(PAIRS) == pytest.approx(theirs.predict(PAIRS), abs=1e-4)
    for wrong, problem in (
        ({"num_labels": 3}, "num_labels: is not supported; the checkpoint says"),
        ({"cache_folder": "x"}, "cache_folder: is not supported; set the variable HF_HOME"),
        ({"model_kwargs": {"attn_implementation": "sdpa"}}, "model_kwargs: attn_implementation: only dtype"),
    ):
        with pytest.raises(ValueError, match=problem):
            CrossEncoder(str(bert_checkpoint), **wrong)


def test_what_is_no_pair_is_refused(ours: CrossEncoder) -> None:
    for inputs in (["ab", "cd", "ef"], [("a", "b"), ("c",)]):
        with pytest.raises(ValueError, match="give a tuple of a query and a document"):
            ours.predict(inputs)


def test_rank_is_sentence_transformers(ours: CrossEncoder, theirs: sentence_transformers.CrossEncoder) -> None:
    query, documents = QUERIES["q4"], list(CORPUS.values())
    found = ours.rank(query, documents, top_k=5, return_documents=True)
    expected = theirs.rank(query, documents, top_k=5, return_documents=True)
    assert [(one["corpus_id"], one["text"]) for one in found] == [(one["corpus_id"], one["text"]) for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    assert json.loads(json.dumps(found)) == found
    assert ours.rank(query, documents, top_k=0) == []
    for call in ({"prompt": "Find: "}, {"activation_fn": torch.nn.Identity()}):
        ranked, wanted = ours.rank(query, documents, **call), theirs.rank(query, documents, **call)
        assert [one["corpus_id"] for one in ranked] == [one["corpus_id"] for one in wanted]
        assert [one["score"] for one in ranked] == pytest.approx([one["score"] for one in wanted], abs=1e-3)


def test_prompts_are_instructions(qwen3_checkpoint: Path) -> None:
    with Reranker(str(qwen3_checkpoint), dtype="float32") as reranker:
        model = CrossEncoder(reranker, prompts={"web": "Find web pages"}, default_prompt_name="web")
        expected = reranker.score([("a", "b")], "Find web pages")
        assert model.predict([("a", "b")]) == pytest.approx(expected, abs=1e-6)
        assert model.predict([("a", "b")], prompt_name="web") == pytest.approx(expected, abs=1e-6)
        assert model.predict([("a", "b")], prompt="Other") == pytest.approx(
            reranker.score([("a", "b")], "Other"), abs=1e-6
        )
        assert model.predict([("a", "b")], prompt="Other") != pytest.approx(expected, abs=1e-6)


def test_mteb_takes_it(ours: CrossEncoder) -> None:
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.models import CrossEncoderProtocol, SearchCrossEncoderWrapper
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(ours, CrossEncoderProtocol)
    assert not isinstance(ours, EncoderProtocol)
    assert ours.mteb_model_meta.name.startswith("rerankd/")
    searcher = SearchCrossEncoderWrapper(ours)
    task = mteb.get_task("SciFact").metadata
    where: dict[str, Any] = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}
    corpus = datasets.Dataset.from_list([{"id": id, "title": "", "text": text} for id, text in CORPUS.items()])
    queries = datasets.Dataset.from_list([{"id": id, "text": text} for id, text in QUERIES.items()])
    searcher.index(corpus, encode_kwargs={"batch_size": 8}, **where)
    ranked = {query: list(CORPUS)[:5] for query in QUERIES}
    found = searcher.search(queries, top_k=5, encode_kwargs={"batch_size": 8}, top_ranked=ranked, **where)
    for query, text in QUERIES.items():
        expected = ours.predict([(text, CORPUS[id]) for id in ranked[query]])
        assert [found[query][id] for id in ranked[query]] == pytest.approx(expected.tolist(), abs=1e-5)
