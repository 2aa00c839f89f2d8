"""What decides which API a call at the root is: every row of the table in docs/apis.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from rerankd.server.dialects import DIALECTS
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """A server of each dialect."""
    with ExitStack() as stack:
        fake = FakeReranker()
        yield {name: stack.enter_context(running(fake, Settings(names=(MODEL,), dialect=name))) for name in DIALECTS}


def spoken(answer: Any) -> str:
    """The API whose answer this is."""
    if isinstance(answer, list):
        return "sglang" if "meta_info" in answer[0] else "elastic" if "relevance_score" in answer[0] else "tei"
    if "scores" in answer:
        return "weaviate"
    if "rankings" in answer:
        return "nvidia"
    if "meta" in answer:
        return "cohere"
    if "data" in answer:
        return "voyage" if "relevance_score" in answer["data"][0] else "vllm"
    if answer.get("object") == "rerank":
        return "infinity"
    return "jina" if answer.get("object") == "list" else "vllm"


def ask(url: str, headers: dict[str, str] | None = None, **body: Any) -> str:
    response = requests.post(url, json={"query": "a", "documents": ["b"], **body}, headers=headers, timeout=30)
    assert response.status_code == 200, response.text
    return spoken(response.json())


PLAIN = {
    "vllm": ["/rerank", "/v1/rerank", "/v2/rerank"],
    "sglang": ["/rerank", "/v1/rerank"],
    "cohere": ["/v1/rerank", "/v2/rerank"],
    "tei": [],
    "infinity": ["/rerank", "/v1/rerank"],
    "voyage": ["/rerank", "/v1/rerank"],
    "jina": ["/rerank", "/v1/rerank"],
    "nvidia": [],
    "weaviate": ["/rerank"],
    "elastic": ["/rerank"],
    "kserve": [],
}


@pytest.mark.parametrize("own", DIALECTS)
def test_where_nothing_tells_the_servers_own_dialect_decides(servers: dict[str, str], own: str) -> None:
    for path in PLAIN[own]:
        assert ask(servers[own] + path) == own


@pytest.mark.parametrize("own", [name for name in DIALECTS if "/v2/rerank" not in PLAIN[name]])
def test_a_route_that_the_own_dialect_lacks_is_the_first_ones_that_has_it(servers: dict[str, str], own: str) -> None:
    assert ask(f"{servers[own]}/v2/rerank") == "vllm"


@pytest.mark.parametrize("own", DIALECTS)
def test_every_dialect_is_below_its_prefix(servers: dict[str, str], own: str) -> None:
    for name, paths in PLAIN.items():
        for path in paths:
            assert ask(f"{servers[own]}/{name}{path}") == name
    assert ask(f"{servers[own]}/tei/rerank", texts=["b"]) == "tei"
    older = "/v1/retrieval/nvidia/llama-nemotron-rerank-1b-v2/reranking"
    for place in ("/v1/ranking", "/ranking", "/nvidia/v1/ranking", older, f"/nvidia{older}"):
        assert ask(servers[own] + place, query={"text": "a"}, passages=[{"text": "b"}]) == "nvidia"


@pytest.mark.parametrize(
    ("paths", "fields", "headers", "dialect"),
    [
        (["/v1/rerank", "/v2/rerank"], {}, {"X-Fern-SDK-Name": "cohere"}, "cohere"),
        (["/v1/rerank"], {"rank_fields": ["text"]}, {}, "cohere"),
        (["/v1/rerank"], {"documents": [{"text": "b"}]}, {"X-Fern-SDK-Name": "cohere"}, "cohere"),
        (["/rerank"], {"texts": ["b"]}, {}, "tei"),
        (["/rerank"], {"texts": ["b"], "raw_scores": True}, {}, "tei"),
        (["/rerank", "/v1/rerank"], {"raw_scores": False}, {}, "infinity"),
        (["/rerank", "/v1/rerank"], {"top_k": 1}, {}, "voyage"),
        (["/rerank"], {"property": ""}, {}, "weaviate"),
        (["/rerank", "/v1/rerank"], {"documents": ["b", {"text": "c"}]}, {}, "jina"),
        (["/rerank", "/v1/rerank"], {"query": {"text": "c"}}, {}, "jina"),
    ],
)
@pytest.mark.parametrize("own", ["vllm", "sglang"])
def test_fields_and_headers_that_one_api_has_tell(
    servers: dict[str, str], own: str, paths: list[str], fields: dict[str, Any], headers: dict[str, str], dialect: str
) -> None:
    for path in paths:
        assert ask(servers[own] + path, headers, **fields) == dialect


@pytest.mark.parametrize("own", DIALECTS)
def test_what_is_tokenised_tells(servers: dict[str, str], own: str) -> None:
    def ask(**body: str) -> Any:
        return requests.post(f"{servers[own]}/tokenize", json=body, timeout=30).json()

    if own != "tei":
        assert ask(prompt="a b")["count"] == 4
    assert [one["text"] for one in ask(inputs="a b")[0]] == ["<s>", "a", "b", "</s>"]


@pytest.mark.parametrize("own", DIALECTS)
def test_the_score_routes(servers: dict[str, str], own: str) -> None:
    assert ask(f"{servers[own]}/score", query=None, documents=["b"], queries=["a"]) == "vllm"
    assert ask(f"{servers[own]}/v1/score", query=None, documents=None, text_1="a", text_2="b") == "vllm"
    body = {"query": "a", "items": ["b"], "label_token_ids": [1, 2]}
    refused = requests.post(f"{servers[own]}/v1/score", json=body, timeout=30).json()
    assert refused["object"] == "error"  # SGLang's: this model is no decoder


@pytest.mark.parametrize("own", DIALECTS)
def test_errors_at_the_root_are_the_claiming_dialects(servers: dict[str, str], own: str) -> None:
    body = {"query": 1, "texts": ["a"]}
    response = requests.post(f"{servers[own]}/rerank", json=body, timeout=30)
    # Elasticsearch's service sends TEI's fields; its own server answers it.
    kind = (400, None) if own == "elastic" else (422, "Tokenizer")
    assert (response.status_code, response.json().get("error_type")) == kind
