"""Chunks over HTTP, in every API that has fields for them, with a real model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from rerankd import Chunking, Reranker, RerankResult, Truncation
from rerankd.server.settings import Settings
from tests import texts
from tests.server.fakes import running

QUERY = "what is panda?"
DOCUMENTS = ["hi", texts.words(700, 1) + " The panda is a bear that eats bamboo.", "The giant panda is a bear."]
PATHS = {
    "vllm": "/vllm/v1/rerank",
    "vllm score": "/vllm/score",
    "sglang": "/sglang/v1/rerank",
    "cohere v1": "/cohere/v1/rerank",
    "cohere v2": "/cohere/v2/rerank",
    "jina": "/jina/v1/rerank",
}
ROWS: dict[str, Callable[[Any], list[dict[str, Any]]]] = {
    "vllm": lambda answer: answer["results"],
    "vllm score": lambda answer: answer["data"],
    "sglang": lambda answer: answer,
    "cohere v1": lambda answer: answer["results"],
    "cohere v2": lambda answer: answer["results"],
    "jina": lambda answer: answer["results"],
}
LEN = 256
"""The model's own limit."""


@pytest.fixture(scope="module")
def reranker(minilm_path: Path) -> Iterator[Reranker]:
    with Reranker(minilm_path, device="cpu", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(reranker: Reranker) -> Iterator[str]:
    with running(reranker, Settings(names=("served",))) as base:
        yield base


@pytest.fixture(scope="module")
def expected(reranker: Reranker) -> RerankResult:
    return reranker.rerank(QUERY, DOCUMENTS, chunking=Chunking(2, 20))


def post(url: str, api: str, **fields: Any) -> requests.Response:
    body: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}
    if api == "vllm score":
        body = {"text_1": QUERY, "text_2": DOCUMENTS}
    return requests.post(url + PATHS[api], json={**body, **fields}, timeout=60)


@pytest.mark.parametrize("api", PATHS)
def test_the_best_chunk_scores_and_is_told(url: str, api: str, expected: RerankResult) -> None:
    response = post(url, api, max_chunks_per_doc=2, overlap_tokens=20, return_best_chunk=True)
    assert response.status_code == 200, response.text
    assert response.headers["X-Rerankd-Truncated"] == "documents 1"
    assert "X-Rerankd-Ignored" not in response.headers
    rows = {row["index"]: row for row in ROWS[api](response.json())}
    for one in expected.documents:
        row = rows[one.index]
        assert row.get("relevance_score", row.get("score")) == pytest.approx(one.score, abs=1e-5)
        if one.best_chunk is None:
            assert row["best_chunk"] is None
            continue
        start, stop = row["best_chunk"]["characters"]
        assert row["best_chunk"] == {
            "index": one.best_chunk.index,
            "chunks": 2,
            "tokens": list(one.best_chunk.tokens),
            "characters": [start, stop],
            "text": DOCUMENTS[one.index][start:stop],
        }
    described = requests.get(f"{url}/openapi.json", timeout=30).json()
    schema = described["paths"][PATHS[api]]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": described["components"]})


@pytest.mark.parametrize("api", PATHS)
def test_nothing_is_told_that_was_not_asked_for(url: str, api: str) -> None:
    chunked = post(url, api, overlap_tokens=0)
    assert "X-Rerankd-Truncated" not in chunked.headers
    assert all("best_chunk" not in row for row in ROWS[api](chunked.json()))
    plain = post(url, api, return_best_chunk=True)
    assert plain.headers["X-Rerankd-Truncated"] == "documents 1"
    assert all(row["best_chunk"] is None for row in ROWS[api](plain.json()))


def test_every_chunks_tokens_are_billed(url: str) -> None:
    few, many = (post(url, "vllm", max_chunks_per_doc=most).json()["usage"]["total_tokens"] for most in (1, 3))
    assert many > 2 * LEN + few - 20
    row = next(row for row in post(url, "sglang", max_chunks_per_doc=3).json() if row["index"] == 1)
    assert row["meta_info"]["prompt_tokens"] > 2 * LEN
    assert post(url, "jina", max_chunks_per_doc=3).json()["usage"]["total_tokens"] == many


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_chunks_per_doc": 0}, "max_chunks_per_doc"),
        ({"overlap_tokens": -1}, "overlap_tokens"),
        ({"overlap_tokens": "x"}, "overlap_tokens"),
    ],
)
def test_bad_values_are_named(url: str, api: str, fields: dict[str, Any], name: str) -> None:
    response = post(url, api, **fields)
    assert response.status_code in (400, 422)
    assert f"{name}: " in response.text


@pytest.mark.parametrize("api", PATHS)
def test_an_overlap_of_more_than_half_a_chunk_is_reduced_and_told(url: str, api: str, reranker: Reranker) -> None:
    # SiliconFlow's clients always send 80.
    limits = {"max_tokens_per_doc": 100} if api not in ("cohere v1", "jina") else {}
    for asked in (80, 10_000) if limits else (10_000,):
        response = post(url, api, overlap_tokens=asked, **limits)
        assert response.status_code == 200, response.text
        assert response.headers["X-Rerankd-Ignored"] == "overlap_tokens"
        assert "X-Rerankd-Truncated" not in response.headers
        truncation = Truncation(max_tokens_per_doc=limits.get("max_tokens_per_doc"))
        half = reranker.rerank(QUERY, DOCUMENTS, truncation=truncation, chunking=Chunking(overlap_tokens=asked))
        assert half.ignored == ("chunking.overlap_tokens",)
        rows = {row["index"]: row.get("relevance_score", row.get("score")) for row in ROWS[api](response.json())}
        assert rows == pytest.approx({one.index: one.score for one in half.documents}, abs=1e-5)
    assert "X-Rerankd-Ignored" not in post(url, api, overlap_tokens=40, **limits).headers


def test_cutting_can_be_forbidden(url: str, expected: RerankResult) -> None:
    for api in ("vllm", "sglang", "jina"):
        assert post(url, api, truncation=False).status_code == 400
        assert post(url, api, truncation=False, overlap_tokens=5).status_code == 200
        refused = post(url, api, truncation=False, max_chunks_per_doc=2)
        assert refused.status_code == 400
        assert "documents[1]" in refused.text


def test_apis_without_such_fields_report_them(url: str) -> None:
    for path in ("/infinity/rerank", "/voyage/v1/rerank"):
        body = {"query": QUERY, "documents": DOCUMENTS, "max_chunks_per_doc": 2}
        response = requests.post(url + path, json=body, timeout=60)
        assert response.headers["X-Rerankd-Ignored"] == "max_chunks_per_doc"


def test_a_side_is_cut_over_http(url: str, reranker: Reranker) -> None:
    left = reranker.rerank(QUERY, DOCUMENTS, truncation=Truncation(side="left")).in_request_order()
    right = reranker.rerank(QUERY, DOCUMENTS).in_request_order()
    assert abs(left[1].score - right[1].score) > 1e-3
    tei = {"query": QUERY, "texts": DOCUMENTS, "truncation_direction": "Left"}
    answers = [
        *(post(url, api, truncation_side="left").json() for api in ("vllm", "vllm score", "sglang")),
        requests.post(f"{url}/tei/rerank", json=tei, timeout=60).json(),
    ]
    for rows in (answers[0]["results"], answers[1]["data"], *answers[2:]):
        found = {row["index"]: row.get("relevance_score", row.get("score")) for row in rows}
        assert [found[index] for index in range(3)] == pytest.approx([one.score for one in left], abs=1e-5)
