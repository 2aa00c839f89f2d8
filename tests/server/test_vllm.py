"""vLLM's dialect over a real socket: shapes to the letter, every field, every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import requests

from rerankd.core import Chunking, Image, RerankRequest, Text, Video, text_content
from tests.server.fakes import MODEL, FakeReranker, fake_score

QUERY = "what is panda?"
DOCUMENTS = ["hi", "The giant panda is a bear.", "pandas eat bamboo"]


def post(base: str, path: str = "/v1/rerank", **body: Any) -> requests.Response:
    return requests.post(base + path, json={"query": QUERY, "documents": DOCUMENTS, **body}, timeout=30)


def ranked(documents: list[str], query: str = QUERY) -> list[tuple[int, float]]:
    scores = [fake_score(text_content(query), text_content(document)) for document in documents]
    return sorted(enumerate(scores), key=lambda one: -one[1])


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/vllm/rerank", "/vllm/v1/rerank"])
def test_answer_has_vllms_shape(vllm_server: str, path: str) -> None:
    response = post(vllm_server, path, model=MODEL, request_id="mine")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "id": "rerank-mine",
        "model": MODEL,
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
        "results": [
            {
                "index": index,
                "document": {"text": DOCUMENTS[index], "multi_modal": None},
                "relevance_score": score,
            }
            for index, score in ranked(DOCUMENTS)
        ],
    }
    assert "X-Rerankd-Ignored" not in response.headers
    assert "X-Rerankd-Truncated" not in response.headers


def test_ids_are_the_callers_or_differ(vllm_server: str) -> None:
    first, second = (post(vllm_server).json()["id"] for _ in range(2))
    assert first.startswith("rerank-")
    assert first != second
    body = {"query": QUERY, "documents": DOCUMENTS, "request_id": "body's"}
    headers = {"X-Request-Id": "header's"}
    answer = requests.post(f"{vllm_server}/v1/rerank", json=body, headers=headers, timeout=30).json()
    assert answer["id"] == "rerank-header's"


@pytest.mark.parametrize("name", [MODEL, "short-name", None, ""])
def test_a_model_answers_to_its_names(vllm_server: str, name: str | None) -> None:
    assert post(vllm_server, model=name).json()["model"] == MODEL


def test_another_model_is_not_found(vllm_server: str) -> None:
    response = post(vllm_server, model="reranker")
    assert response.status_code == 404
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)
    assert "The model `reranker` does not exist." in error["message"]
    assert MODEL in error["message"]


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (2, 2), (3, 3), (4, 3), (10**30, 3), (0, 3), (None, 3)])
def test_top_n_keeps_the_best(vllm_server: str, top_n: int | None, count: int) -> None:
    answer = post(vllm_server, top_n=top_n).json()
    assert [result["index"] for result in answer["results"]] == [index for index, _ in ranked(DOCUMENTS)][:count]
    assert answer["usage"]["total_tokens"] == 10


def test_documents_can_be_left_out(vllm_server: str) -> None:
    assert all(
        set(one) == {"index", "relevance_score"} for one in post(vllm_server, return_documents=False).json()["results"]
    )


def sent(fake: FakeReranker, base: str, **body: Any) -> RerankRequest:
    response = post(base, **body)
    assert response.status_code in (200, 400), response.text
    return fake.requests[-1]


def test_every_field_reaches_the_engine(vllm_server: str, fake: FakeReranker) -> None:
    request = sent(
        fake,
        vllm_server,
        instruction="find bears",
        top_n=2,
        truncate_prompt_tokens=7,
        max_tokens_per_doc=5,
        max_tokens_per_query=4,
        truncation=False,
        use_activation=False,
        truncation_side="left",
        max_chunks_per_doc=3,
        overlap_tokens=2,
        user="me",
    )
    assert request.query == text_content(QUERY)
    assert request.documents == tuple(text_content(document) for document in DOCUMENTS)
    assert request.instruction == "find bears"
    assert request.top_n == 2
    limits = request.truncation
    assert (limits.max_tokens, limits.max_tokens_per_doc, limits.max_tokens_per_query) == (7, 5, 4)
    assert (limits.allowed, limits.side) == (False, "left")
    assert request.chunking == Chunking(3, 2)
    assert request.activation is False


@pytest.mark.parametrize(
    ("fields", "activated"),
    [
        ({"activation": False}, False),
        ({"softmax": False}, False),
        ({"softmax": True}, True),
        ({"activation": True, "softmax": False}, True),
        ({"use_activation": True, "activation": False, "softmax": False}, True),
        ({"use_activation": False, "activation": True}, False),
        ({"use_activation": None, "activation": None, "softmax": False}, False),
    ],
)
@pytest.mark.parametrize(
    ("path", "texts"),
    [("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}), ("/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS})],
)
def test_older_names_ask_for_logits(
    vllm_server: str, fake: FakeReranker, path: str, texts: dict[str, Any], fields: dict[str, Any], activated: bool
) -> None:
    """In the order of `PoolingParams`."""
    response = requests.post(vllm_server + path, json={**texts, **fields}, timeout=30)
    assert response.status_code == 200, response.text
    assert fake.requests[-1].activation is activated
    assert "X-Rerankd-Ignored" not in response.headers


def test_defaults_leave_everything_to_the_model(vllm_server: str, fake: FakeReranker) -> None:
    request = sent(fake, vllm_server, truncate_prompt_tokens=-1, max_tokens_per_doc=0, top_n=0, use_activation=None)
    assert request == RerankRequest(text_content(QUERY), tuple(text_content(document) for document in DOCUMENTS))


@pytest.mark.parametrize(
    "fields",
    [
        {"instruct": "find bears"},
        {"instruct": "find bears", "instruction": "find bears"},
        {"chat_template_kwargs": {"instruction": "find bears"}, "instruction": "find cats"},
        {"chat_template_kwargs": {"instruct": "find bears"}},
    ],
)
def test_an_instruction_has_several_names(vllm_server: str, fake: FakeReranker, fields: Mapping[str, Any]) -> None:
    assert sent(fake, vllm_server, **fields).instruction == "find bears"


def test_contents_come_in_several_forms(vllm_server: str, fake: FakeReranker) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://pictures/1.png", "max_pixels": 1000}}
    video = {"type": "video_url", "video_url": {"url": "http://videos/1.mp4", "fps": 0.5, "max_frames": 8}}
    request = sent(
        fake,
        vllm_server,
        query={"content": "a string in an object"},
        documents=[
            "text",
            {"content": [{"type": "text", "text": "one"}, picture]},
            [{"type": "text", "text": "two"}, video],
            {"content": ["three", {"type": "image_url", "image_url": "data:,x"}]},
        ],
    )
    assert request.query == text_content("a string in an object")
    assert request.documents == (
        (Text("text"),),
        (Text("one"), Image("http://pictures/1.png", max_pixels=1000)),
        (Text("two"), Video("http://videos/1.mp4", fps=0.5, max_frames=8)),
        (Text("three"), Image("data:,x")),
    )


@pytest.mark.parametrize(
    "document", ["one text", {"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "text"}]}]
)
def test_one_document_needs_no_list(vllm_server: str, document: Any) -> None:
    (result,) = post(vllm_server, documents=document).json()["results"]
    parts = None if isinstance(document, str) else document["content"]
    assert result["document"] == {"text": None if parts else document, "multi_modal": parts}


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({"foo": 1}, "foo"),
        ({"foo": 1, "bär\n": 2}, 'foo, "b\\u00e4r\\n"'),
        ({"instruction": "find bears"}, "instruction"),
        ({"instruct": "find bears"}, "instruct"),
        (
            {"chat_template_kwargs": {"instruction": "x", "other": 1}},
            "chat_template_kwargs.other, chat_template_kwargs.instruction",
        ),
        ({"priority": 3, "cache_salt": "s", "padding": "max_length"}, "priority, cache_salt, padding"),
        ({"mm_processor_kwargs": {"max_pixels": 3, "do_pan": 1}}, "mm_processor_kwargs.do_pan"),
        ({"mm_processor_kwargs": {"size": {"longest_edge": 3, "height": 1}}}, "mm_processor_kwargs.size.height"),
        ({"documents": [[{"type": "text", "text": "a", "colour": "red"}]]}, "documents[0].content[0].colour"),
        ({"query": {"content": "a", "role": "query"}}, "query.role"),
    ],
)
def test_what_has_no_effect_is_reported(vllm_server: str, fields: Mapping[str, Any], header: str) -> None:
    response = post(vllm_server, **fields)
    assert response.status_code == 200
    assert response.headers["X-Rerankd-Ignored"] == header


def test_processor_kwargs_are_for_parts_that_say_nothing(vllm_server: str, fake: FakeReranker) -> None:
    url = {"url": "http://x/y"}
    document = [
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {**url, "max_pixels": 9}},
        {"type": "video_url", "video_url": url},
        {"type": "video_url", "video_url": {**url, "fps": 4}},
    ]
    given = {"min_pixels": 1, "size": {"longest_edge": 5, "shortest_edge": 3}, "fps": 2.5, "max_frames": 8}
    request = sent(fake, vllm_server, documents=[document], mm_processor_kwargs=given, on_error="skip")
    assert request.on_error == "skip"
    assert request.documents == (
        (
            Image("http://x/y", 1, 5),
            Image("http://x/y", 1, 9),
            Video("http://x/y", 2.5, 8),
            Video("http://x/y", 4, 8),
        ),
    )


def test_a_report_stays_short(vllm_server: str) -> None:
    response = post(vllm_server, **{f"field_{number}": 1 for number in range(5000)})
    assert response.status_code == 200
    assert len(response.headers["X-Rerankd-Ignored"]) < 2100
    assert response.headers["X-Rerankd-Ignored"].endswith(" more")


def test_what_was_cut_is_reported(vllm_server: str) -> None:
    documents = ["a " * 3, "b", "c " * 4, "d " * 5, "e " * 6]
    response = post(vllm_server, query="four words or more", documents=documents, truncate_prompt_tokens=2, top_n=1)
    assert response.headers["X-Rerankd-Truncated"] == "query; documents 0, 2-4"


def test_cutting_can_be_forbidden(vllm_server: str) -> None:
    response = post(vllm_server, documents=["a", "b " * 9], truncate_prompt_tokens=5, truncation=False)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "documents[1]"
    assert "9" in error["message"]
    assert "5" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": None}, "query"),
        ({"query": 7}, "query"),
        ({"query": []}, "query"),
        ({"query": [{"type": "text"}]}, "query.content[0].text"),
        ({"query": {"words": "a"}}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": None}, "documents"),
        ({"documents": 3}, "documents"),
        ({"documents": ["a", None]}, "documents[1]"),
        ({"documents": ["a", 1.5]}, "documents[1]"),
        ({"documents": ["a", {"words": "b"}]}, "documents[1]"),
        ({"documents": ["a", [{"type": "audio_url", "audio_url": "x"}]]}, "documents[1].content[0]"),
        ({"documents": ["a", [{"type": "image_url", "image_url": {}}]]}, "documents[1].content[0].image_url.url"),
        (
            {"documents": ["a", [{"type": "image_url", "image_url": {"url": "x", "max_pixels": 0}}]]},
            "documents[1].content[0].image_url.max_pixels",
        ),
        ({"documents": ["a", [{"type": "image_url", "image_url": "x"}]]}, "documents[1]"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": "many"}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens"),
        ({"truncation_side": "top"}, "truncation_side"),
        ({"max_chunks_per_doc": 0}, "max_chunks_per_doc"),
        ({"overlap_tokens": -1}, "overlap_tokens"),
        ({"return_best_chunk": "x"}, "return_best_chunk"),
        ({"truncation": "perhaps"}, "truncation"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc"),
        ({"return_documents": []}, "return_documents"),
        ({"instruction": 1}, "instruction"),
        ({"instruct": "a", "instruction": "b"}, "instruct"),
        ({"chat_template_kwargs": {"instruction": 1}}, "chat_template_kwargs.instruction"),
        ({"chat_template_kwargs": "a"}, "chat_template_kwargs"),
        ({"model": 1}, "model"),
        ({"use_activation": "x"}, "use_activation"),
        ({"on_error": "ignore"}, "on_error"),
        ({"mm_processor_kwargs": {"min_pixels": 0}}, "mm_processor_kwargs.min_pixels"),
        ({"mm_processor_kwargs": {"fps": -1}}, "mm_processor_kwargs.fps"),
    ],
)
def test_a_bad_field_is_named(vllm_server: str, fields: Mapping[str, Any], param: str) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, **fields}
    response = requests.post(f"{vllm_server}/v1/rerank", json=body, timeout=30)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["type"], error["code"]) == (param, "BadRequestError", 400)
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("field", ["query", "documents"])
def test_a_missing_field_is_named_with_what_it_is(vllm_server: str, field: str) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    del body[field]
    response = requests.post(f"{vllm_server}/v1/rerank", json=body, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{field}: is required (the ")


def test_invocations_are_told_apart_by_their_fields(vllm_server: str, sglang_server: str) -> None:
    for base in (vllm_server, sglang_server):
        for path in ("/invocations", "/vllm/invocations"):
            answer = post(base, path, request_id="mine").json()
            assert answer == post(base, "/vllm/v1/rerank", request_id="mine").json()
            assert answer["results"]
            for body in (
                {"text_1": QUERY, "text_2": DOCUMENTS},
                {"data_1": [QUERY] * 3, "data_2": DOCUMENTS},
                {"queries": QUERY, "documents": DOCUMENTS},
            ):
                scored = requests.post(base + path, json={**body, "request_id": "mine"}, timeout=30).json()
                assert [one["score"] for one in scored["data"]] == [score for _, score in sorted(ranked(DOCUMENTS))]
                assert scored["id"] == "score-mine"


def test_an_invocation_that_is_neither_is_refused(vllm_server: str) -> None:
    refused = requests.post(f"{vllm_server}/invocations", json={"prompt": "a"}, timeout=30)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "query")


def test_what_answers_a_get_answers_a_head(vllm_server: str) -> None:
    for path in ("/health", "/ping", "/version", "/v1/models", "/metrics", "/load", "/tei/info", "/docs"):
        head = requests.head(vllm_server + path, timeout=30)
        assert (head.status_code, head.content) == (200, b""), path
    assert requests.head(f"{vllm_server}/nowhere", timeout=30).status_code == 404
    refused = requests.head(f"{vllm_server}/v1/rerank", timeout=30)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST, PUT")


def test_a_model_is_found_by_its_name(vllm_server: str) -> None:
    listed = requests.get(f"{vllm_server}/v1/models", timeout=30).json()["data"]
    assert [card["id"] for card in listed] == [MODEL, "short-name"]
    for card in listed:
        assert requests.get(f"{vllm_server}/v1/models/{card['id']}", timeout=30).json() == card
    missing = requests.get(f"{vllm_server}/v1/models/another", timeout=30)
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "model")
