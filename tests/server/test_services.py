"""The dialects of Cohere, Jina, Voyage, TEI and Infinity over a real socket: shapes, fields, refusals."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import HealthCheck, given, settings

from rerankd.core import Image, RerankRequest, RerankResult, Text, text_content
from rerankd.server.dialects import DIALECTS
from rerankd.server.settings import Settings
from tests.server.fakes import INFO, MODEL, FakeReranker, fake_score, running
from tests.server.test_bodies import BODIES, JSON, VALUES

QUERY = "what is panda?"
DOCUMENTS = ["hi", "The giant panda is a bear.", "pandas eat bamboo"]
TOKENS = sum(len(document.split()) for document in DOCUMENTS)
PATHS = {
    "cohere v1": "/cohere/v1/rerank",
    "cohere v2": "/cohere/v2/rerank",
    "jina": "/jina/v1/rerank",
    "voyage": "/voyage/v1/rerank",
    "tei": "/tei/rerank",
    "infinity": "/infinity/rerank",
}
SERVICES = tuple(PATHS)


def post(base: str, service: str, **changes: Any) -> requests.Response:
    body: dict[str, Any] = {"query": QUERY, "texts" if service == "tei" else "documents": DOCUMENTS, **changes}
    return requests.post(base + PATHS.get(service, service), json=body, timeout=30)


def ranked(documents: list[str] = DOCUMENTS) -> list[tuple[int, float]]:
    scores = [fake_score(text_content(QUERY), text_content(document)) for document in documents]
    return sorted(enumerate(scores), key=lambda one: -one[1])


def results(service: str, answer: Any) -> list[tuple[int, float]]:
    """(index, score) of each result."""
    rows = answer if service == "tei" else answer["data" if service == "voyage" else "results"]
    return [(row["index"], row["score" if service == "tei" else "relevance_score"]) for row in rows]


@pytest.mark.parametrize("version", ["1", "2"])
def test_coheres_shape(vllm_server: str, version: str) -> None:
    response = post(vllm_server, f"cohere v{version}", model=MODEL)
    answer = response.json()
    assert answer.pop("id")
    assert answer == {
        "results": [{"index": index, "relevance_score": score} for index, score in ranked()],
        "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
    }
    assert "X-Rerankd-Ignored" not in response.headers


def test_jinas_shape(vllm_server: str) -> None:
    assert post(vllm_server, "jina", model="jina-reranker-v3").json() == {
        "model": "jina-reranker-v3",
        "object": "list",
        "usage": {"total_tokens": TOKENS},
        "results": [
            {"index": index, "relevance_score": score, "document": {"text": DOCUMENTS[index]}}
            for index, score in ranked()
        ],
    }


def test_voyages_shape(vllm_server: str) -> None:
    assert post(vllm_server, "voyage").json() == {
        "object": "list",
        "data": [{"relevance_score": score, "index": index} for index, score in ranked()],
        "model": MODEL,
        "usage": {"total_tokens": TOKENS},
    }


def test_teis_shape(vllm_server: str) -> None:
    assert post(vllm_server, "tei").json() == [{"index": index, "score": score} for index, score in ranked()]
    info = requests.get(f"{vllm_server}/tei/info", timeout=30).json()
    assert (info["model_id"], info["max_input_length"]) == (MODEL, INFO.max_model_len)
    assert info["model_type"]["reranker"]
    assert requests.get(f"{vllm_server}/info", timeout=30).json() == info


def test_teis_prefix_alone_is_its_rerank(vllm_server: str) -> None:
    """TEI's server of a reranker takes rerank requests at its root."""
    answer = requests.post(f"{vllm_server}/tei", json={"query": QUERY, "texts": DOCUMENTS}, timeout=30)
    assert answer.json() == post(vllm_server, "tei").json()
    assert requests.post(f"{vllm_server}/tei", json={"query": QUERY}, timeout=30).json()["error_type"] == "Tokenizer"
    assert requests.post(vllm_server, json={}, timeout=30).status_code in (404, 405)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_health_is_below_every_prefix(vllm_server: str, dialect: str) -> None:
    assert requests.get(f"{vllm_server}/{dialect}/health", timeout=30).status_code == 200


def test_llama_cpps_top_n_goes_with_teis_texts(vllm_server: str) -> None:
    for count in (1, 2, 9, None):
        response = post(vllm_server, "tei", top_n=count)
        assert results("tei", response.json()) == ranked()[:count]
        assert "X-Rerankd-Ignored" not in response.headers
    assert post(vllm_server, "tei", top_n=0).status_code == 422


def test_infinitys_shape(vllm_server: str) -> None:
    answer = post(vllm_server, "infinity").json()
    assert answer.pop("id").startswith("infinity-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "rerank",
        "results": [{"relevance_score": score, "index": index, "document": None} for index, score in ranked()],
        "model": MODEL,
        "usage": {"prompt_tokens": TOKENS, "total_tokens": TOKENS},
    }
    card, _ = requests.get(f"{vllm_server}/infinity/models", timeout=30).json()["data"]
    assert (card["id"], card["capabilities"], card["stats"]["results_pending"]) == (MODEL, ["rerank"], 0)


@pytest.mark.parametrize("service", [service for service in SERVICES if service != "tei"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_only_the_best_are_kept(vllm_server: str, service: str, count: int) -> None:
    field = "top_k" if service == "voyage" else "top_n"
    assert results(service, post(vllm_server, service, **{field: count}).json()) == ranked()[:count]
    assert post(vllm_server, service, **{field: 0}).status_code in (400, 422)


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("wanted", [True, False])
def test_documents_come_back_when_asked_for(vllm_server: str, service: str, wanted: bool) -> None:
    field = "return_text" if service == "tei" else "return_documents"
    answer = post(vllm_server, service, **{field: wanted}).json()
    rows = answer if service == "tei" else answer["data" if service == "voyage" else "results"]
    for row in rows:
        text = DOCUMENTS[row["index"]] if wanted else None
        got = row.get("text" if service == "tei" else "document")
        assert got == (text if service in ("tei", "voyage", "infinity") or not wanted else {"text": text})


class Tied(FakeReranker):
    """Every score is the same."""

    async def answer(self, request: RerankRequest) -> RerankResult:
        result = await super().answer(request)
        equal = tuple(type(one)(one.index, 0.5, 1) for one in result.in_request_order())
        return type(result)(equal[: request.top_n], 1, 1)


@pytest.mark.parametrize("service", SERVICES)
def test_equal_scores_keep_the_order_of_the_request(service: str) -> None:
    with running(Tied(), Settings(names=(MODEL,))) as url:
        assert results(service, post(url, service).json()) == [(0, 0.5), (1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("service", ["tei", "infinity"])
def test_raw_scores_are_logits(vllm_server: str, fake: FakeReranker, service: str) -> None:
    for raw in (True, False):
        post(vllm_server, service, raw_scores=raw)
        assert fake.requests[-1].activation is not raw


@pytest.mark.parametrize(("count", "units"), [(1, 1), (100, 1), (101, 2), (250, 3)])
def test_a_search_unit_is_a_hundred_documents(vllm_server: str, count: int, units: int) -> None:
    answer = post(vllm_server, "cohere v2", documents=["a"] * count).json()
    assert answer["meta"]["billed_units"] == {"search_units": units}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (None, "a bear"),
        (["text"], "a bear"),
        (["title"], "Panda"),
        (["title", "text"], "title: Panda\ntext: a bear"),
        (["text", "year"], "text: a bear\nyear: 1869"),
        (["title", "missing"], "title: Panda"),
    ],
)
def test_coheres_objects_are_read_by_their_fields(
    vllm_server: str, fake: FakeReranker, fields: list[str] | None, text: str
) -> None:
    panda = {"title": "Panda", "text": "a bear", "year": 1869}
    answer = post(vllm_server, "cohere v1", documents=["hi", panda], rank_fields=fields, return_documents=True).json()
    assert fake.requests[-1].documents == (text_content("hi"), text_content(text))
    assert {one["index"]: one["document"] for one in answer["results"]} == {0: {"text": "hi"}, 1: panda}


def test_coheres_objects_without_the_fields_are_refused(vllm_server: str) -> None:
    response = post(vllm_server, "cohere v1", documents=["hi", {"title": "Panda"}])
    assert response.status_code == 400
    assert response.json()["message"].startswith("documents[1]: has none of the fields 'text'")


def test_jinas_pictures_reach_the_engine(vllm_server: str, fake: FakeReranker) -> None:
    response = post(
        vllm_server,
        "jina",
        query={"text": "panda"},
        documents=[
            "a",
            {"text": "b"},
            {"image": "https://x/1.png"},
            {"image": "iVBORw0KGgo="},
            {"text": "c", "image": "data:,"},
        ],
    )
    assert (response.status_code, response.json()) == (400, {"detail": "documents[2]: this model reads text only"})
    request = fake.requests[-1]
    assert request.query == text_content("panda")
    assert request.documents == (
        text_content("a"),
        text_content("b"),
        (Image("https://x/1.png"),),
        (Image("data:;base64,iVBORw0KGgo="),),
        (Image("data:,"), Text("c")),
    )


def test_jinas_documents_come_back_as_they_were_sent(vllm_server: str) -> None:
    answer = post(vllm_server, "jina", documents=["a", {"text": "b"}]).json()
    assert {one["index"]: one["document"] for one in answer["results"]} == {0: {"text": "a"}, 1: {"text": "b"}}


@pytest.mark.parametrize("service", SERVICES)
def test_any_model_is_taken_and_another_is_reported(vllm_server: str, service: str) -> None:
    for name in (MODEL, "reranker", "short-name"):
        assert "X-Rerankd-Ignored" not in post(vllm_server, service, model=name).headers or service == "tei"
    response = post(vllm_server, service, model="rerank-v3.5", foo=1)
    assert response.status_code == 200
    assert set(response.headers["X-Rerankd-Ignored"].split(", ")) == {"model", "foo"}
    if service == "infinity":  # its answers have a name, which is the served model's
        assert response.json()["model"] == post(vllm_server, service, model="short-name").json()["model"] == MODEL


CUT: Mapping[str, tuple[str, int]] = {
    "jina": ("truncation", 400),
    "voyage": ("truncation", 400),
    "tei": ("truncate", 422),
}


@pytest.mark.parametrize("service", CUT)
def test_cutting_can_be_forbidden(vllm_server: str, service: str) -> None:
    field, status = CUT[service]
    texts = {"texts" if service == "tei" else "documents": ["a", "b " * (INFO.max_model_len + 1)]}
    response = post(vllm_server, service, **texts)
    assert (response.status_code, response.headers["X-Rerankd-Truncated"]) == (200, "documents 1")
    response = post(vllm_server, service, **texts, **{field: False})
    assert response.status_code == status
    assert f"{'texts' if service == 'tei' else 'documents'}[1]" in response.text


def test_coheres_limit_of_a_document_reaches_the_engine(vllm_server: str, fake: FakeReranker) -> None:
    for version in ("1", "2"):
        post(vllm_server, f"cohere v{version}", max_tokens_per_doc=7)
        assert fake.requests[-1].truncation.max_tokens_per_doc == 7


def test_teis_side_reaches_the_engine(vllm_server: str, fake: FakeReranker) -> None:
    for direction, side in (("Left", "left"), ("left", "left"), ("Right", "right"), ("right", "right")):
        assert post(vllm_server, "tei", truncation_direction=direction).status_code == 200
        assert fake.requests[-1].truncation.side == side
    assert post(vllm_server, "tei", truncation_direction="Up").status_code == 422


def message(service: str, response: requests.Response) -> str:
    """What an error says, which lies where its API has it."""
    body = response.json()
    if service.startswith("cohere"):
        assert set(body) == {"message"}
        return str(body["message"])
    if service == "tei":
        assert set(body) == {"error", "error_type"}
        return str(body["error"])
    if service == "infinity" and response.status_code != 422:
        assert set(body) == {"error"}
        assert body["error"]["code"] == response.status_code
        return str(body["error"]["message"])
    assert set(body) == {"detail"}
    if service == "voyage" or response.status_code != 422:
        return str(body["detail"])
    (detail,) = body["detail"]
    assert set(detail) == {"loc", "msg", "type"}
    return str(detail["msg"])


@pytest.mark.parametrize("service", SERVICES)
def test_errors_have_the_apis_shape_and_status(vllm_server: str, service: str) -> None:
    bad = 422 if service in ("jina", "infinity", "tei") else 400
    documents = "texts" if service == "tei" else "documents"
    for change, field in (
        ({"query": 1}, "query"),
        ({documents: 1}, documents),
        ({documents: ["a", 1]}, f"{documents}[1]"),
    ):
        response = post(vllm_server, service, **change)
        assert response.status_code == bad
        assert message(service, response).startswith(f"{field}: ")
    response = post(vllm_server, service, **{documents: []})
    assert response.status_code == (400 if service == "tei" else bad)
    assert message(service, response).startswith(f"{documents}: ")
    response = post(vllm_server, service, query="break")
    assert response.status_code == (424 if service == "tei" else 500)
    assert "secret" not in message(service, response)
    url = vllm_server + PATHS[service]
    response = requests.post(url, data=b"{", headers={"Content-Type": "application/json"}, timeout=30)
    assert response.status_code == bad
    assert "not valid JSON" in message(service, response)
    assert requests.post(url, data=b"{}", headers={"Content-Type": "text/plain"}, timeout=30).status_code == 415
    large = post(vllm_server, service, query="a" * (1 << 20))
    assert large.status_code == 413
    assert "--max-body-mb" in message(service, large)
    assert message(service, requests.get(f"{url}/nowhere", timeout=30))


def test_teis_errors_have_its_types(vllm_server: str) -> None:
    kinds = {
        (post(vllm_server, "tei", **change).status_code, post(vllm_server, "tei", **change).json()["error_type"])
        for change in ({"query": 1}, {"texts": []}, {"query": "break"}, {"texts": ["a " * 600], "truncate": False})
    }
    assert kinds == {(422, "Tokenizer"), (400, "Empty"), (424, "Backend"), (422, "Validation")}


@pytest.fixture(scope="module")
def connection(vllm_server: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(vllm_server).netloc, timeout=30)


@pytest.mark.parametrize("service", SERVICES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | VALUES, rename=...)
def test_no_json_gives_a_500(connection: http.client.HTTPConnection, service: str, body: Any, rename: bool) -> None:
    if service == "tei" and rename and isinstance(body, dict) and "documents" in body:
        body["texts"] = body.pop("documents")
    connection.request("POST", PATHS[service], json.dumps(body).encode(), JSON)
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status in (200, 400, 422), answer
