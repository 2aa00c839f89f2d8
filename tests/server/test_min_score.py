"""`min_score` and `score_threshold` in every API's rerank body."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rerankd import Reranker
from rerankd.server.settings import Settings
from tests.server.fakes import running
from tests.texts import DOCUMENTS, QUERIES

TEXTS = list(DOCUMENTS[:9])
ROUTES = (
    "/vllm/v1/rerank", "/sglang/v1/rerank", "/cohere/v1/rerank", "/cohere/v2/rerank", "/tei/rerank", "/infinity/rerank",
    "/voyage/v1/rerank", "/jina/v1/rerank", "/v1/rerank", "/elastic/rerank",
)  # fmt: skip


@pytest.fixture(scope="module")
def served(bert_checkpoint: Path) -> Iterator[tuple[str, Reranker]]:
    with Reranker(str(bert_checkpoint), dtype="float32") as reranker, running(reranker, Settings(names=("m",))) as url:
        yield url, reranker


def ask(url: str, route: str, **fields: Any) -> requests.Response:
    texts = "texts" if "/tei/" in route else "documents"
    return requests.post(url + route, json={"query": QUERIES[0], texts: TEXTS, **fields}, timeout=60)


def indices(response: requests.Response) -> list[int]:
    assert response.status_code == 200, response.text
    data = response.json()
    found = data if isinstance(data, list) else data.get("results", data.get("data"))
    return [one["index"] for one in found]


@pytest.mark.parametrize("name", ["min_score", "score_threshold"])
@pytest.mark.parametrize("route", ROUTES)
def test_low_scores_are_left_out_and_reported(route: str, name: str, served: tuple[str, Reranker]) -> None:
    url, reranker = served
    whole = reranker.rerank(QUERIES[0], TEXTS)
    # Between two scores, so that their last digits do not matter.
    bound = (whole.documents[3].score + whole.documents[4].score) / 2
    response = ask(url, route, **{name: bound})
    assert indices(response) == [one.index for one in whole.documents[:4]]
    assert "X-Rerankd-Ignored" not in response.headers
    told = response.headers["X-Rerankd-Below-Min-Score"].removeprefix("documents ")
    below = set()
    for run in told.split(", "):
        first, _, last = run.partition("-")
        below |= set(range(int(first), int(last or first) + 1))
    assert below == {one.index for one in whole.documents[4:]}
    assert indices(ask(url, route, **{name: 2})) == []
    assert "X-Rerankd-Below-Min-Score" not in ask(url, route, **{name: None}).headers


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_no_score_is_refused(route: str, served: tuple[str, Reranker]) -> None:
    url, _ = served
    for fields, field in (
        ({"min_score": "high"}, "min_score"),
        ({"min_score": 0.1, "score_threshold": 0.2}, "score_threshold"),
    ):
        response = ask(url, route, **fields)
        assert response.status_code in (400, 422)
        assert field in response.text
    assert indices(ask(url, route, min_score=0.0, score_threshold=0.0)) != []


def test_logits_are_held_against_a_logit(served: tuple[str, Reranker]) -> None:
    url, reranker = served
    whole = reranker.rerank(QUERIES[0], TEXTS, activation=False)
    bound = (whole.documents[3].score + whole.documents[4].score) / 2
    expected = [one.index for one in whole.documents[:4]]
    assert indices(ask(url, "/v1/rerank", min_score=bound, use_activation=False)) == expected
    assert indices(ask(url, "/tei/rerank", min_score=bound, raw_scores=True)) == expected


def test_pairs_are_all_answered(served: tuple[str, Reranker]) -> None:
    """vLLM's score route promises a score for each pair; the field is reported as without effect."""
    url, _ = served
    body = {"text_1": "a", "text_2": TEXTS, "min_score": 2}
    response = requests.post(f"{url}/v1/score", json=body, timeout=60)
    assert len(response.json()["data"]) == 9
    assert response.headers["X-Rerankd-Ignored"] == "min_score"


def test_apis_of_another_shape(served: tuple[str, Reranker]) -> None:
    url, reranker = served
    logits = reranker.rerank(QUERIES[0], TEXTS, activation=False).documents
    bound = (logits[3].score + logits[4].score) / 2
    body: dict[str, Any] = {"query": {"text": QUERIES[0]}, "passages": [{"text": text} for text in TEXTS]}
    answer = requests.post(f"{url}/nvidia/v1/ranking", json={**body, "min_score": bound}, timeout=60)
    assert [one["index"] for one in answer.json()["rankings"]] == [one.index for one in logits[:4]]
    assert "X-Rerankd-Below-Min-Score" in answer.headers
    scores = reranker.rerank(QUERIES[0], TEXTS).documents
    bound = (scores[3].score + scores[4].score) / 2
    answer = ask(url, "/weaviate/rerank", min_score=bound, property="")
    kept = sorted(one.index for one in scores[:4])
    assert [one["document"] for one in answer.json()["scores"]] == [TEXTS[index] for index in kept]
    assert "X-Rerankd-Below-Min-Score" in answer.headers


def test_tensors_hold_every_score(served: tuple[str, Reranker]) -> None:
    """The protocol's answer says no document's place; the field is reported as without effect."""
    url, _ = served
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data}
        for name, data in (("query", [QUERIES[0]]), ("documents", TEXTS))
    ]
    answer = requests.post(f"{url}/kserve/v2/models/m/infer", json={"inputs": tensors, "min_score": 2}, timeout=60)
    assert answer.json()["outputs"][0]["shape"] == [9]
    assert answer.headers["X-Rerankd-Ignored"] == "min_score"
