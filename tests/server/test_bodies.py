"""Bodies that are not what a client should send, in every dialect."""

from __future__ import annotations

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from benchmarks import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerankd.core import text_content
from rerankd.limits import RequestLimits
from rerankd.server import body as body_module
from rerankd.server.body import parse_json
from rerankd.server.dialects import DIALECTS as every_dialect
from rerankd.server.dialects.base import Dialect, Endpoint
from rerankd.server.problems import Problem, checked
from tests.server.fakes import FakeReranker, fake_score

JSON = {"Content-Type": "application/json"}
DIALECTS = ("vllm", "sglang")


def send(base: str, dialect: str, body: bytes, headers: dict[str, str] = JSON) -> requests.Response:
    return requests.post(f"{base}/{dialect}/rerank", data=body, headers=headers, timeout=30)


def code(dialect: str, response: requests.Response) -> int:
    error = response.json()["error"] if dialect == "vllm" else response.json()
    assert error["message"]
    return int(error["code"])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"query": "\xff", "documents": ["a"]}',
        b"[" * 200_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"top_n": ' + b"9" * 10_000 + b"}",
        b'{"query": "a" "documents": ["b"]}',
    ],
)
def test_what_is_not_a_json_object_is_refused(vllm_server: str, dialect: str, body: bytes) -> None:
    response = send(vllm_server, dialect, body)
    assert response.status_code == 400
    assert code(dialect, response) == 400


PIECES = [
    "a",
    "é",
    "𝄞",
    "\\n",
    '\\"',
    "\\\\",
    "\\/",
    "\\u0041",
    "\\ud83d",
    "\\ude00",
    "\\ud83d\\ude00",
    "\\\\ud83d",
    "u",
    "d",
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strings=st.lists(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), min_size=1, max_size=5))
@pytest.mark.parametrize("most", [19, 24, 40])
def test_long_strings_are_read_slice_by_slice(most: int, strings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library reads them whole, wherever a slice ends."""
    monkeypatch.setattr(body_module, "LARGE", 0)
    monkeypatch.setattr(body_module, "SLICE", most)
    text = '{"a": [' + ", ".join(f'"{one}"' for one in strings) + "]}"
    wanted = [one.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for one in json.loads(text)["a"]]
    assert parse_json(text.encode(), RequestLimits())["a"] == wanted


@pytest.mark.parametrize("wrong", ["\t", "\\x", "\\u12", "\\ud8", ""])
def test_a_long_string_that_is_wrong_is_told_its_place(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "LARGE", 0)
    monkeypatch.setattr(body_module, "SLICE", 20)
    text = '{"a": "' + '\\"' * 100 + wrong
    with pytest.raises(json.JSONDecodeError) as whole:
        json.loads(text + ('"}' if wrong else ""))
    with pytest.raises(Problem, match="not valid JSON") as told:
        parse_json((text + ('"}' if wrong else "")).encode(), RequestLimits())
    assert whole.value.msg in str(told.value)
    assert not wrong or str(whole.value.pos) in str(told.value)


def test_bytes_that_are_no_text_are_told_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "SLICE", 7)
    for place in range(30):
        with pytest.raises(Problem, match=f"byte {place} does not decode"):
            parse_json(("é" * 20).encode()[: place - place % 2] + b"a" * (place % 2) + b"\xff" * 9, RequestLimits())


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("path", "field"), [("/v1/rerank", "top_n"), ("/nvidia/v1/ranking", "top_k"), ("/tei/rerank", "top_n")]
)
def test_an_integer_that_python_does_not_read_is_named(vllm_server: str, path: str, field: str, large: bool) -> None:
    more = "a" * (body_module.LARGE if large else 1)
    for number in ("9" * 5_000, "-" + "9" * 5_000):
        body = f'{{"more": "{more}", "{field}": {number}}}'.encode()
        response = requests.post(vllm_server + path, data=body, headers=JSON, timeout=30)
        assert response.status_code in (400, 422)
        assert f"{field}: is an integer of {len(number)} characters" in response.text
        assert "set_int_max_str_digits" not in response.text
    body = f'{{"{field}": [1, {"9" * 5_000}]}}'.encode()
    response = requests.post(vllm_server + path, data=body, headers=JSON, timeout=30)
    assert "The body holds an integer of 5000 characters" in response.text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
def test_what_is_not_called_json_is_refused(vllm_server: str, dialect: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = send(vllm_server, dialect, b'{"query": "a", "documents": ["b"]}', headers)
    assert response.status_code == 415
    assert code(dialect, response) == 415
    assert "application/json" in response.text


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "GZip"])
def test_a_compressed_body_is_refused_as_such(vllm_server: str, coding: str) -> None:
    body = gzip.compress(b'{"query": "a", "documents": ["b"]}')
    response = send(vllm_server, "vllm", body, {**JSON, "Content-Encoding": coding})
    assert response.status_code == 415
    assert "compressed" in response.text
    plain = b'{"query": "a", "documents": ["b"]}'
    assert send(vllm_server, "vllm", plain, {**JSON, "Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_a_content_type_may_have_parameters(vllm_server: str, content_type: str) -> None:
    body = '{"query": "ä", "documents": ["b"]}'.encode()
    assert send(vllm_server, "vllm", body, {"Content-Type": content_type}).status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_refused(vllm_server: str, dialect: str, chunked: bool) -> None:
    body = json.dumps({"query": "a", "documents": ["b" * (1 << 20)]}).encode()
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    response = requests.post(
        f"{vllm_server}/{dialect}/rerank", data=chunks if chunked else body, headers=JSON, timeout=30
    )
    assert response.status_code == 413
    assert code(dialect, response) == 413
    assert "--max-body-mb" in response.text


def test_a_body_below_the_limit_is_taken(vllm_server: str) -> None:
    body = json.dumps({"query": "a", "documents": ["b" * ((1 << 20) - 100)]}).encode()
    assert send(vllm_server, "vllm", body).status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lone_surrogates_become_replacement_characters(vllm_server: str, fake: FakeReranker, dialect: str) -> None:
    body = (
        rb'{"query": "a\ud83d", "documents": ["\udc00b", "\ud83d\ude00", "\\ud800"], "\ud800": 1, "instruct": "\udfff"}'
    )
    response = send(vllm_server, dialect, body)
    assert response.status_code == 200
    request = fake.requests[-1]
    assert request.query == text_content("a\ufffd")
    assert request.documents == tuple(text_content(text) for text in ("\ufffdb", "😀", r"\ud800"))
    assert request.instruction == "\ufffd"
    assert "\\ufffd" in response.headers["X-Rerankd-Ignored"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_odd_texts_come_back_as_they_were_sent(vllm_server: str, dialect: str) -> None:
    documents = ["", " ", "\x00", "\u202eשלום", "日本語", "🧑‍🚀" * 3, "<|im_end|>", "a" * 100_000, "\u2028"]
    query = ""
    if dialect == "sglang":  # which refuses blank texts
        query, documents = "\x00", [document for document in documents if document.strip()]
    body = json.dumps({"query": query, "documents": documents}).encode()
    answer = send(vllm_server, dialect, body).json()
    results = answer["results"] if dialect == "vllm" else answer
    echoed = {one["index"]: one["document"]["text"] if dialect == "vllm" else one["document"] for one in results}
    scores = {one["index"]: one["relevance_score" if dialect == "vllm" else "score"] for one in results}
    assert echoed == dict(enumerate(documents))
    assert scores == {
        index: fake_score(text_content(query), text_content(document)) for index, document in enumerate(documents)
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_failure_keeps_its_secrets(vllm_server: str, dialect: str) -> None:
    response = send(vllm_server, dialect, b'{"query": "break", "documents": ["a"]}')
    assert response.status_code == 500
    assert code(dialect, response) == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/sglang/nowhere", 404), ("/v1/rerank", 405)])
def test_errors_of_the_router_have_a_dialects_shape(vllm_server: str, path: str, status: int) -> None:
    response = requests.get(vllm_server + path, timeout=30)
    assert response.status_code == status
    assert code("sglang" if "sglang" in path else "vllm", response) == status
    assert status != 405 or response.headers["Allow"] == "POST, PUT"


# What a fuzzer makes of a body: any JSON under the names that mean something, beside any JSON at all.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**40)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["text", "image_url", "video_url", "left", "max_length", "http://x", "example/reranker"])
)
NAMES = st.sampled_from(["type", "text", "content", "url", "image_url", "video_url", "fps", "instruction"]) | st.text(
    max_size=5
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
FIELDS = st.sampled_from(
    [
        *("model", "query", "documents", "top_n", "return_documents", "instruct", "instruction", "truncation"),
        *("truncate_prompt_tokens", "max_tokens_per_doc", "max_tokens_per_query", "truncation_side", "padding"),
        *("priority", "mm_processor_kwargs", "cache_salt", "use_activation", "chat_template_kwargs", "user"),
        *("request_id", "model_config", "model_fields", "__dict__", "self", "cls", "copy", "json", "validate"),
    ]
)
CONTENTS = st.text(st.characters(), max_size=10) | VALUES
BODIES = st.builds(
    lambda extra, query, documents: {"query": query, "documents": documents, **extra},
    st.dictionaries(FIELDS | st.text(max_size=5), VALUES, max_size=4),
    CONTENTS,
    st.lists(CONTENTS, max_size=4) | VALUES,
)


@pytest.fixture(scope="module")
def connection(vllm_server: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(vllm_server).netloc, timeout=30)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES | VALUES)
def test_no_json_gives_a_500(connection: http.client.HTTPConnection, dialect: str, body: Any) -> None:
    connection.request("POST", f"/{dialect}/v1/rerank", json.dumps(body).encode(), JSON)
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status in ((200, 400, 404) if dialect == "vllm" else (200, 400)), answer
    if response.status == 200:
        results = answer["results"] if dialect == "vllm" else answer
        assert results
    else:
        error = answer["error"] if dialect == "vllm" else answer
        assert error["code"] == response.status
        assert error["message"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_give_a_500(connection: http.client.HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/v1/rerank", body, JSON)
    response = connection.getresponse()
    response.read()
    assert response.status == 400


def test_an_error_repeats_no_more_than_the_beginning_of_what_is_wrong(vllm_server: str) -> None:
    """Of a name, a field or an id: the rest would be written, cut and encoded while every other call waits."""
    long = "ö" * 150_000
    good = {"query": "a", "documents": ["b"]}
    for path, body, status in (
        ("/v1/rerank", {**good, "model": long}, 404),
        ("/v2/models/m/infer", {**good, "model": long}, 400),
        ("/v1/rerank", {**good, "chat_template_kwargs": {"instruction": 1, long: 2}}, 400),
        ("/v1/rerank", {"query": "a", "documents": [{"content": 1, long: 1}]}, 400),
        ("/cohere/v2/rerank", {**good, "rank_fields": [long]}, 200),
        ("/v1/rerank", {**good, "request_id": long, "top_n": -1}, 400),
    ):
        response = requests.post(vllm_server + path, json=body, timeout=30)
        assert response.status_code == status, response.text[:300]
        assert len(response.content) < 10_000
        assert len(response.headers["X-Request-Id"]) <= 200


@pytest.mark.parametrize("large", [False, True])
def test_what_is_nested_is_repeated_or_refused(vllm_server: str, large: bool) -> None:
    """Python reads a value of some depth that it cannot write again."""
    seen = set()
    for depth in (10, 200, 240, 260, *range(800, 1000, 3)):
        nested = "[" * depth + "]" * depth
        more = json.dumps("a" * 40_000 if large else "a")
        documents = f'[{{"text": {more}, "x": {nested}}}, {{"text": {nested}}}]'
        body = f'{{"query": "a", "documents": {documents}, "return_documents": true}}'
        response = requests.post(f"{vllm_server}/cohere/v1/rerank", data=body, headers=JSON, timeout=30)
        assert response.status_code in (200, 400), (depth, response.text[:200])
        assert response.status_code == 200 or "nested too deeply" in response.text
        seen.add(response.status_code)
    assert seen == {200, 400}


def test_mutated_requests_of_every_api_are_answered_or_refused(vllm_server: str) -> None:
    """`python -m benchmarks.fuzz URL` sends as many as one wants."""
    given = fuzz.run(vllm_server, 600, seed=1)
    assert given[200] > 50
    assert given[400] > 50


WRONG: list[Any] = [
    *(None, 5, -7, 1.5, "x", True, [], [5], {}, {"a": 1}, [[]], [{}], [10**40]),
    *([[{"type": "image"}]], [[{"type": "image_url"}]], [{"content": [{"type": "text"}]}], ["x"] * 9),
]


def refusals(endpoint: Endpoint[Any]) -> Iterator[Problem]:
    """What an endpoint says of an example's body with each field wrong, or under another name."""
    (body, *_) = [*endpoint.examples.values(), {}]
    for field in endpoint.body.model_fields:
        changes = [{**body, field: value} for value in WRONG]
        renamed = {f"my_{name}" if name == field else name: value for name, value in body.items()}
        for fields in (*changes, renamed):
            try:
                checked(endpoint.body, fields, RequestLimits())
            except Problem as problem:
                yield problem


@pytest.mark.parametrize("dialect", every_dialect.values(), ids=every_dialect)
def test_no_api_answers_in_the_words_of_pydantic(dialect: Dialect) -> None:
    problems = [problem for endpoint in dialect.endpoints for problem in refusals(endpoint)]
    assert problems
    for problem in problems:
        text = str(problem)
        assert re.match(r"[\w.\[\]]+: (must|is required|holds) ?", text), text
        assert not re.search("should|Value error|instance|dictionary|integer|unable to|validation", text), text


SAID = [
    (
        "nvidia",
        "/ranking",
        {"query": "a", "passages": []},
        'query: must be an object, as in {"text": "what is panda?"} (',
    ),
    (
        "nvidia",
        "/ranking",
        {"query": {"text": "a"}, "passages": ["b"]},
        "passages[0]: must be an object of `text`, `im",
    ),
    (
        "vllm",
        "/rerank",
        {"query": "a", "docs": ["b"], "x": 1},
        "documents: is required (the documents to rank: strings",
    ),
    (
        *("vllm", "/rerank", {"query": "a", "documents": [{"txt": "b"}]}),
        "documents[0]: must have `content`, or as in Jina's API (/jina) `text` or `image`.",
    ),
    ("vllm", "/score", {"text_1": "a", "text_2": [{"text": "b"}]}, "text_2[0]: must have `content`."),
    (
        *("vllm", "/rerank", {"query": "a", "documents": [[{"type": "image", "image": "b"}]]}),
        "documents[0].content[0]: must be a content part: an object whose `type` is text, image_url or video_url, not",
    ),
    (
        "vllm",
        "/rerank",
        {"query": "a", "documents": ["b"], "min_score": "x"},
        "min_score: must be a number (the lowest ",
    ),
]


@pytest.mark.parametrize(("dialect", "path", "body", "said"), SAID, ids=range(len(SAID)))
def test_an_error_says_what_a_field_takes(vllm_server: str, dialect: str, path: str, body: Any, said: str) -> None:
    answer = requests.post(f"{vllm_server}/{dialect}{path}", json=body, timeout=30).json()
    message = answer["error"]["message"] if dialect == "vllm" else answer["message"]
    assert message.startswith(said)
    assert "docs" not in body or message.endswith("; unknown in the body: `docs`, `x`.")
