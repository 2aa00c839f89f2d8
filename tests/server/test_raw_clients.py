"""The bytes of Weaviate's and Elasticsearch's own clients, and the Content-Type that some clients leave out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from rerankd.core import EngineDead, text_content
from rerankd.server.dialects import DIALECTS
from rerankd.server.pool import Pool
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, fake_score, running
from tests.server.raw import of_elasticsearch, of_go, sent

QUERY, DOCUMENTS = "what is panda?", ["hi", "The giant panda is a bear.", "pandas eat bamboo"]
SCORES = [fake_score(text_content(QUERY), text_content(document)) for document in DOCUMENTS]
RANKED = sorted(range(len(SCORES)), key=lambda index: -SCORES[index])
# As Go's encoding/json writes it: `RankInput` of Weaviate's module.
GO = b'{"query":"what is panda?","documents":["hi","The giant panda is a bear.","pandas eat bamboo"],"property":""}'
# As `HuggingFaceRerankRequestEntity` of Elasticsearch writes it.
ELASTIC = (
    b'{"texts":["hi","The giant panda is a bear.","pandas eat bamboo"],"query":"what is panda?",'
    b'"return_text":true,"top_n":2}'
)
TENSORS: dict[str, Any] = {
    "inputs": [
        {"name": "query", "datatype": "BYTES", "shape": [1], "data": [QUERY]},
        {"name": "documents", "datatype": "BYTES", "shape": [3], "data": DOCUMENTS},
    ]
}
PLAIN = {"query": QUERY, "documents": DOCUMENTS}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm": ("/vllm/v1/rerank", PLAIN),
    "sglang": ("/sglang/v1/rerank", PLAIN),
    "cohere": ("/cohere/v2/rerank", PLAIN),
    "tei": ("/tei/rerank", {"query": QUERY, "texts": DOCUMENTS}),
    "infinity": ("/infinity/rerank", PLAIN),
    "voyage": ("/voyage/v1/rerank", PLAIN),
    "jina": ("/jina/v1/rerank", PLAIN),
    "nvidia": ("/nvidia/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": one} for one in DOCUMENTS]}),
    "weaviate": ("/weaviate/rerank", PLAIN),
    "elastic": ("/elastic/rerank", {"query": QUERY, "texts": DOCUMENTS}),
    "kserve": (f"/kserve/v2/models/{MODEL}/infer", TENSORS),
}


@pytest.mark.parametrize("path", ["/rerank", "/weaviate/rerank"])
def test_weaviates_module_is_answered(vllm_server: str, path: str) -> None:
    status, headers, body = sent(vllm_server, of_go(path, GO))
    assert status == 200, body
    assert json.loads(body) == {
        "query": QUERY,
        "scores": [{"document": text, "score": score} for text, score in zip(DOCUMENTS, SCORES, strict=True)],
        "property": "",
    }
    assert "X-Rerankd-Ignored" not in headers


@pytest.mark.parametrize("path", ["/rerank", "/weaviate/rerank"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"query":"p","documents":null,"property":""}'),
        (400, b'{"query":"p","documents":[],"property":""}'),
        (400, b'{"query":1,"documents":["a"],"property":""}'),
        (500, b'{"query":"break","documents":["a"],"property":""}'),
    ],
)
def test_weaviates_module_reads_its_errors(vllm_server: str, path: str, status: int, body: bytes) -> None:
    """It takes only an `error` that is a string."""
    answered, _, answer = sent(vllm_server, of_go(path, body))
    told = json.loads(answer)
    assert (answered, list(told)) == (status, ["error"])
    assert isinstance(told["error"], str)


def test_every_api_is_called(vllm_server: str) -> None:
    assert set(CALLS) == set(DIALECTS)


@pytest.mark.parametrize("dialect", CALLS)
def test_a_body_without_a_type_is_json(vllm_server: str, dialect: str) -> None:
    path, body = CALLS[dialect]
    status, _, answer = sent(vllm_server, of_go(path, json.dumps(body).encode()))
    assert status == 200, answer


@pytest.mark.parametrize(
    "header",
    [
        b"Origin: http://evil.example",
        b"Origin: null",
        b"ORIGIN: http://127.0.0.1",
        b"Sec-Fetch-Site: cross-site",
        b"sec-fetch-mode: no-cors",
    ],
)
@pytest.mark.parametrize("dialect", CALLS)
def test_a_browsers_body_without_a_type_is_refused(
    vllm_server: str, fake: FakeReranker, dialect: str, header: bytes
) -> None:
    """What any page may send with `fetch` and a Blob without a type, to a server on its reader's machine."""
    path, body = CALLS[dialect]
    before = len(fake.requests)
    status, _, answer = sent(vllm_server, of_go(path, json.dumps(body).encode(), header))
    assert status == 415
    assert b"application/json" in answer
    assert b"browser" in answer
    assert len(fake.requests) == before


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/plain",
        b"text/plain;charset=UTF-8",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/octet-stream",
    ],
)
@pytest.mark.parametrize("dialect", CALLS)
def test_a_body_of_another_type_is_refused(vllm_server: str, dialect: str, content_type: bytes) -> None:
    path, body = CALLS[dialect]
    status, _, answer = sent(vllm_server, of_go(path, json.dumps(body).encode(), b"Content-Type: " + content_type))
    assert status == 415
    assert b"application/json" in answer


@pytest.mark.parametrize("own", ["vllm", "elastic"])
def test_elasticsearchs_service_is_answered(vllm_server: str, own: str) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), dialect=own, keys=("k",))) as url:
        for path in ("/elastic/rerank", "/rerank"):
            status, headers, body = sent(url, of_elasticsearch(path, ELASTIC))
            assert status == 200, body
            assert json.loads(body) == [
                {"index": index, "score": SCORES[index], "text": DOCUMENTS[index]} for index in RANKED[:2]
            ]
            assert "X-Rerankd-Ignored" not in headers
        answered = requests.get(f"{url}/metrics", timeout=30).text
        # At the root, the server's own dialect goes before TEI's, which has the same field.
        at_root = "elastic" if own == "elastic" else "tei"
        assert f'rerankd_requests_total{{dialect="{at_root}",route="/rerank",status="200"}} 1.0' in answered


def test_elasticsearchs_service_reads_its_errors() -> None:
    with running(FakeReranker(), Settings(names=(MODEL,), dialect="elastic", keys=("k",))) as url:
        for path in ("/elastic/rerank", "/rerank"):
            for body, field in ((b'{"texts":[],"query":"a"}', "texts"), (b'{"query":"a"}', "texts")):
                status, _, answer = sent(url, of_elasticsearch(path, body))
                told = json.loads(answer)
                assert (status, list(told)) == (400, ["error"])
                assert told["error"].startswith(f"{field}: ")


def test_elasticsearchs_texts_come_back_only_when_asked_for(vllm_server: str) -> None:
    for body in (b'{"texts":["a"],"query":"b"}', b'{"texts":["a"],"query":"b","return_text":false}'):
        _, _, answer = sent(vllm_server, of_elasticsearch("/elastic/rerank", body))
        assert [set(one) for one in json.loads(answer)] == [{"index", "score"}]


def test_the_first_versions_of_elasticsearchs_service_are_answered(vllm_server: str) -> None:
    body = {**PLAIN, "return_documents": True, "top_n": 2}
    answer = requests.post(f"{vllm_server}/elastic/rerank", json=body, timeout=30)
    assert answer.json() == [
        {"index": index, "relevance_score": SCORES[index], "text": DOCUMENTS[index]} for index in RANKED[:2]
    ]
    answer = requests.post(f"{vllm_server}/elastic/rerank", json={**body, "texts": ["one"]}, timeout=30)
    assert [set(one) for one in answer.json()] == [{"index", "score"}]
    assert answer.headers["X-Rerankd-Ignored"] == "documents, return_documents"


def test_weaviates_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, settings = FakeReranker(), Settings(names=(MODEL,), keys=("k",))

    def statuses(url: str) -> list[int]:
        answers = (requests.get(f"{url}/.well-known/{own}", timeout=30) for own in ("live", "ready"))
        return [answer.status_code for answer in answers]

    with running(fake, settings) as url:
        assert statuses(url) == [200, 200]
        with monkeypatch.context() as patch:
            patch.setattr(Pool, "asleep", True)
            assert statuses(url) == [200, 503]
        settings.draining.set()
        assert statuses(url) == [200, 503]
        fake.failure = EngineDead("gone")
        assert statuses(url) == [503, 503]
