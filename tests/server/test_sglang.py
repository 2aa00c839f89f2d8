"""SGLang's dialect over a real socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import requests

from rerankd.core import text_content
from rerankd.version import __version__
from tests.server.fakes import INFO, MODEL, FakeReranker, fake_score

QUERY = "法国首都是哪里？"
DOCUMENTS = ["法国的首都是巴黎。", "德国的首都是柏林。", "香蕉是黄色的水果。"]


def post(base: str, path: str = "/v1/rerank", **body: Any) -> requests.Response:
    return requests.post(base + path, json={"query": QUERY, "documents": DOCUMENTS, **body}, timeout=30)


def expected(documents: bool) -> list[dict[str, Any]]:
    scores = [fake_score(text_content(QUERY), text_content(document)) for document in DOCUMENTS]
    results = [
        {
            "score": score,
            **({"document": DOCUMENTS[index]} if documents else {}),
            "index": index,
            "meta_info": {"id": "rerank-mine", "prompt_tokens": 1, "truncated": False},
        }
        for index, score in enumerate(scores)
    ]
    return sorted(results, key=lambda one: -one["score"])


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/sglang/v1/rerank", "/sglang/rerank"])
def test_answer_is_a_sorted_list(sglang_server: str, path: str) -> None:
    response = post(sglang_server, path, request_id="mine")
    assert response.status_code == 200
    assert response.json() == expected(documents=True)


def test_every_dialect_is_below_its_prefix(vllm_server: str, sglang_server: str) -> None:
    assert isinstance(post(vllm_server, "/sglang/v1/rerank").json(), list)
    assert isinstance(post(sglang_server, "/vllm/v1/rerank").json(), dict)


@pytest.mark.parametrize("wanted", [True, False])
def test_documents_come_back_when_asked_for(sglang_server: str, wanted: bool) -> None:
    answer = post(sglang_server, request_id="mine", return_documents=wanted).json()
    assert answer == expected(documents=wanted)


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (2, 2), (99, 3), (None, 3)])
def test_top_n_keeps_the_best(sglang_server: str, top_n: int | None, count: int) -> None:
    assert post(sglang_server, request_id="mine", top_n=top_n).json() == expected(documents=True)[:count]


@pytest.mark.parametrize(
    ("model", "ignored"), [(MODEL, None), ("reranker", None), (None, None), ("another/model", "model")]
)
def test_any_model_is_taken_and_another_is_reported(sglang_server: str, model: str | None, ignored: str | None) -> None:
    response = post(sglang_server, model=model)
    assert response.status_code == 200
    assert response.headers.get("X-Rerankd-Ignored") == ignored


def test_logits_may_be_asked_for(sglang_server: str, fake: FakeReranker) -> None:
    """They are SGLang's own scores of most cross-encoders."""
    response = post(sglang_server, use_activation=False)
    assert fake.requests[-1].activation is False
    assert "X-Rerankd-Ignored" not in response.headers
    assert post(sglang_server).status_code == 200
    assert fake.requests[-1].activation is True


def test_an_instruction_without_effect_is_reported(sglang_server: str, fake: FakeReranker) -> None:
    response = post(sglang_server, instruct="find capitals")
    assert fake.requests[-1].instruction == "find capitals"
    assert response.headers["X-Rerankd-Ignored"] == "instruct"


def test_parts_come_back_as_parts(sglang_server: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    answer = post(sglang_server, documents=["plain", parts]).json()
    assert {one["index"]: one["document"] for one in answer} == {0: "plain", 1: parts}


def test_what_was_cut_is_in_meta_info(sglang_server: str) -> None:
    response = post(sglang_server, documents=["a", "b b b"], truncate_prompt_tokens=2)
    assert {one["index"]: one["meta_info"]["truncated"] for one in response.json()} == {0: False, 1: True}
    assert response.headers["X-Rerankd-Truncated"] == "documents 1"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_n": 0}, "top_n"),
        ({"top_n": -3}, "top_n"),
        ({"documents": "one text"}, "documents"),
        ({"documents": [1]}, "documents[0]"),
        ({"query": 1}, "query"),
        ({"query": [{"type": "image_url", "image_url": 1}]}, "query.content[0].image_url"),
    ],
)
def test_errors_have_sglangs_shape(sglang_server: str, fields: Mapping[str, Any], param: str) -> None:
    refused(post(sglang_server, **fields), param, "Bad Request")


def refused(response: requests.Response, param: str, kind: str) -> None:
    assert response.status_code == 400
    error = response.json()
    assert set(error) == {"object", "message", "type", "param", "code"}
    assert (error["object"], error["type"], error["param"], error["code"]) == ("error", kind, param, 400)
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": [[{"type": "image_url", "image_url": {"url": "http://x"}}]]}, "documents[0]"),
        ({"documents": ["a", "b b b"], "truncate_prompt_tokens": 2, "truncation": False}, "documents[1]"),
        ({"query": ""}, "query"),
        ({"query": " \n"}, "query"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": ["\t", "a"]}, "documents[0]"),
    ],
)
def test_what_sglang_itself_refuses_has_its_type(sglang_server: str, fields: Mapping[str, Any], param: str) -> None:
    refused(post(sglang_server, **fields), param, "BadRequestError")


def test_a_failure_has_sglangs_type(sglang_server: str) -> None:
    response = post(sglang_server, query="break")
    assert (response.status_code, response.json()["type"]) == (500, "InternalServerError")


def test_put_is_as_good_as_post(vllm_server: str, sglang_server: str) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "request_id": "mine"}
    for url in (f"{sglang_server}/v1/rerank", f"{vllm_server}/v1/rerank", f"{vllm_server}/sglang/v1/rerank"):
        response = requests.put(url, json=body, timeout=30)
        assert (response.status_code, response.json()) == (200, expected(documents=True))


def test_what_the_server_says_of_itself(sglang_server: str) -> None:
    for path in ("/server_info", "/get_server_info", "/sglang/server_info"):
        info = requests.get(sglang_server + path, timeout=30).json()
        assert (info["served_model_name"], info["version"]) == (MODEL, __version__)
        assert (info["context_length"], info["is_embedding"]) == (INFO.max_model_len, True)
