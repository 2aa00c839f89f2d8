"""The APIs as they are published: `published/` has, for each, requests as its documentation shows them, and what its
published schema or types ask of an answer and of an error, put down as JSON Schema, with the source of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from rerankd.core import RerankRequest, RerankResult, Text
from rerankd.server.dialects import DIALECTS
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, running
from tests.server.test_openapi import Decoder

FOLDER = Path(__file__).parent / "published"
PUBLISHED: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
REQUESTS = [
    pytest.param(name, route, body, id=f"{name} {route} {number}")
    for name, api in PUBLISHED.items()
    for route, known in api["routes"].items()
    for number, body in enumerate(known["requests"])
]
BAD = [
    pytest.param(name, route, body, id=f"{name} {route} {number}")
    for name, api in PUBLISHED.items()
    for route, known in api["routes"].items()
    for number, body in enumerate(known["bad"])
]


class Seeing(Decoder):
    """Takes pictures and videos for the text of their URLs."""

    async def answer(self, request: RerankRequest) -> RerankResult:
        documents = tuple(
            tuple(part if isinstance(part, Text) else Text(str(part.source)) for part in document)
            for document in request.documents
        )
        return await super().answer(replace(request, documents=documents))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(Seeing(), Settings(names=(MODEL,))) as url:
        yield url


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with running(Seeing(), Settings(names=(MODEL,), keys=("k",))) as url:
        yield url


def send(url: str, route: str, body: Any) -> requests.Response:
    method, path = route.split()
    return requests.request(method, url + path, json=None if method == "GET" else body, timeout=30)


def accepts(schema: dict[str, Any], answer: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(answer)


def test_no_api_is_missing() -> None:
    assert set(PUBLISHED) == set(DIALECTS)
    assert all(api["source"] for api in PUBLISHED.values())


@pytest.mark.parametrize(("name", "route", "body"), REQUESTS)
def test_documented_requests_are_answered_as_published(url: str, name: str, route: str, body: Any) -> None:
    response = send(url, route, body)
    assert response.status_code == 200, response.text
    accepts(PUBLISHED[name]["routes"][route]["answer"], response.json())


@pytest.mark.parametrize(("name", "route", "body"), BAD)
def test_errors_are_as_published(url: str, name: str, route: str, body: Any) -> None:
    response = send(url, route, body)
    assert 400 <= response.status_code < 600
    accepts(PUBLISHED[name]["error"], response.json())


@pytest.mark.parametrize("name", PUBLISHED)
def test_errors_that_no_route_gives_are_as_published(url: str, locked: str, name: str) -> None:
    for response in (
        requests.get(f"{url}/{name}/nowhere", timeout=30),
        requests.post(f"{locked}/{name}/v1/rerank", json={}, timeout=30),
    ):
        assert response.status_code in (401, 404)
        accepts(PUBLISHED[name]["error"], response.json())
