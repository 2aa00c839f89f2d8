"""What the server says of itself, and the OpenAPI document."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import requests

from rerankd.server.settings import Settings
from tests.server.fakes import INFO, MODEL, FakeReranker, running


@pytest.fixture(scope="module")
def openapi(vllm_server: str) -> dict[str, Any]:
    document: dict[str, Any] = requests.get(f"{vllm_server}/openapi.json", timeout=30).json()
    return document


def check(openapi: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": openapi["components"]}).validate(value)


def test_models_has_vllms_shape(vllm_server: str) -> None:
    answer = requests.get(f"{vllm_server}/v1/models", timeout=30).json()
    assert answer["object"] == "list"
    created = {card.pop("created") for card in answer["data"]}
    assert len(created) == 1
    assert answer["data"] == [
        {
            "id": name,
            "object": "model",
            "owned_by": "rerankd",
            "root": MODEL,
            "parent": None,
            "max_model_len": INFO.max_model_len,
            "permission": [],
        }
        for name in (MODEL, "short-name")
    ]


def test_health_is_empty(vllm_server: str) -> None:
    response = requests.get(f"{vllm_server}/health", timeout=30)
    assert (response.status_code, response.content) == (200, b"")


def test_docs_are_there(vllm_server: str) -> None:
    assert "swagger" in requests.get(f"{vllm_server}/docs", timeout=30).text


def test_docs_can_be_left_out(fake: FakeReranker) -> None:
    with running(fake, Settings(names=(MODEL,), docs=False)) as url:
        for path in ("/docs", "/openapi.json", "/redoc"):
            assert requests.get(url + path, timeout=30).status_code == 404


def test_every_reference_resolves(openapi: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                *_, group, name = node["$ref"].split("/")
                assert name in openapi["components"][group]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(openapi)
    ids = [operation["operationId"] for path in openapi["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/vllm/rerank", "/sglang/v1/rerank"])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"return_documents": False, "top_n": 1}, 200),
        ({"documents": [[{"type": "text", "text": "a"}], {"content": "b"}]}, 200),
        ({"truncate_prompt_tokens": 1 << 20}, 400),
    ],
)
def test_answers_are_as_described(
    vllm_server: str, openapi: dict[str, Any], path: str, fields: dict[str, Any], status: int
) -> None:
    body = {"query": "a", "documents": ["b", "c"], **fields}
    operation = openapi["paths"][path]["post"]
    check(openapi, operation["requestBody"]["content"]["application/json"]["schema"], body)
    response = requests.post(vllm_server + path, json=body, timeout=30)
    assert response.status_code == status
    check(openapi, operation["responses"][str(status)]["content"]["application/json"]["schema"], response.json())


@pytest.mark.parametrize("path", ["/rerank", "/sglang/rerank"])
def test_bodies_that_are_refused_are_not_as_described(openapi: dict[str, Any], path: str) -> None:
    schema = openapi["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for body in ({"query": 1, "documents": ["a"]}, {"query": "a"}, {"query": "a", "documents": [1]}):
        with pytest.raises(jsonschema.ValidationError):
            check(openapi, schema, body)
