"""The OpenAPI document against the server: examples, statuses, fields."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import requests
from jsonschema.exceptions import best_match

from rerankd.core import EngineClosed, RerankRequest, RerankResult
from rerankd.server.app import create_app
from rerankd.server.service import Service
from rerankd.server.settings import Settings
from tests.labels import written_out
from tests.server.fakes import INFO, MODEL, FakeReranker, running, words
from tests.server.test_clients_that_leave import until

LONG = "word " * (INFO.max_model_len + 1)


class Decoder(FakeReranker):
    """A decoder; a query of "close" comes too late."""

    def __init__(self) -> None:
        super().__init__()
        self.info = replace(INFO, family="decoder")

    async def answer(self, request: RerankRequest) -> RerankResult:
        if request.labels is not None:
            if any(isinstance(prompt, str) and prompt.startswith("close") for prompt in written_out(request)):
                raise EngineClosed("too late")
            return await super().answer(request)
        if ["close"] in (words(request.query), *map(words, request.documents)):
            raise EngineClosed("too late")
        return await super().answer(request)


def document_of(dialect: str) -> dict[str, Any]:
    document: dict[str, Any] = create_app(Decoder(), Settings(names=(MODEL,), dialect=dialect)).openapi()
    return document


DOCUMENTS = {dialect: document_of(dialect) for dialect in ("vllm", "sglang")}
OPERATIONS = [
    (dialect, method, path)
    for dialect, document in DOCUMENTS.items()
    for path, operations in document["paths"].items()
    for method in operations
]
TWICE = frozenset(
    path
    for (_, path), routed in Service(Decoder(), Settings(names=(MODEL,))).routes.items()
    if len(routed) == 1 and not path.startswith(f"/{routed[0][0].name}/")
)
"""Paths at the root that one API alone has: below its prefix they are the same."""
# What is below a prefix is the same in each.
EVERY = [one for one in OPERATIONS if one[0] == "vllm" and one[2] not in TWICE] + [
    one for one in OPERATIONS if one[0] == "sglang" and one[2] in ("/rerank", "/v1/rerank", "/v1/score")
]
POSTS = [
    (dialect, path)
    for dialect, method, path in EVERY
    if method == "post" and "requestBody" in DOCUMENTS[dialect]["paths"][path][method]
]
TEXTS = {"text_1", "text_2", "queries", "documents", "query", "items", "input", "inputs"}
CARDS = ("/v1/models", "/v1/models/{model}")


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    settings = {dialect: Settings(names=(MODEL,), dialect=dialect, max_body=1 << 20) for dialect in DOCUMENTS}
    with running(Decoder(), settings["vllm"]) as vllm, running(Decoder(), settings["sglang"]) as sglang:
        yield {"vllm": vllm, "sglang": sglang}


def check(dialect: str, schema: dict[str, Any], value: Any) -> None:
    document = DOCUMENTS[dialect]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    error = best_match(validator.iter_errors(value))
    assert error is None, f"{value}: {error.message}"


def operation(dialect: str, method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENTS[dialect]["paths"][path][method]
    return found


def as_described(dialect: str, method: str, path: str, response: requests.Response) -> None:
    """An answer has a status, a type, a body and headers that its operation describes."""
    described = operation(dialect, method, path)["responses"][str(response.status_code)]
    if "content" not in described:
        assert response.content == b""
        return
    ((kind, content),) = described["content"].items()
    assert response.headers["Content-Type"].partition(";")[0] == kind
    if kind == "application/json":
        check(dialect, content["schema"], response.json())
    for header in described.get("headers", {}):
        # A fake reranker has no stages to tell the times of.
        if not header.startswith("X-Rerankd-") and header != "Server-Timing":
            assert header in response.headers


@pytest.mark.parametrize(("dialect", "path"), POSTS)
def test_each_example_of_a_body_is_valid_and_answered(urls: dict[str, str], dialect: str, path: str) -> None:
    content = operation(dialect, "post", path)["requestBody"]["content"]["application/json"]
    examples = [example["value"] for example in content["examples"].values()]
    assert examples
    for body in examples:
        check(dialect, content["schema"], body)
        response = requests.post(urls[dialect] + path.format(model=MODEL), json=body, timeout=30)
        assert response.status_code == 200, response.text
        as_described(dialect, "post", path, response)


@pytest.mark.parametrize(("dialect", "method", "path"), EVERY)
def test_each_example_of_an_answer_is_valid(dialect: str, method: str, path: str) -> None:
    for status, described in operation(dialect, method, path)["responses"].items():
        for kind, content in described.get("content", {}).items():
            examples = [example["value"] for example in content.get("examples", {}).values()]
            wanted = kind == "application/json" and path not in CARDS
            assert examples or not wanted, f"no example of {status}"
            for value in examples:
                check(dialect, content["schema"], value)


def test_each_get_is_as_described(urls: dict[str, str]) -> None:
    for dialect, method, path in EVERY:
        if method == "get":
            response = requests.get(urls[dialect] + path.format(model=MODEL), timeout=30)
            assert response.status_code == 200
            as_described(dialect, "get", path, response)


def optional(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    """Every field that a body may leave out."""
    for one in schema.get("anyOf", [schema]):
        body = schemas[one["$ref"].rpartition("/")[2]]
        yield from (name for name in body["properties"] if name not in body.get("required", ()))


def without_the_clock(response: requests.Response) -> Any:
    answer = response.json()
    return {name: value for name, value in answer.items() if name != "created"} if isinstance(answer, dict) else answer


@pytest.mark.parametrize(("dialect", "path"), POSTS)
def test_null_in_an_optional_field_is_as_good_as_leaving_it_out(urls: dict[str, str], dialect: str, path: str) -> None:
    content = operation(dialect, "post", path)["requestBody"]["content"]["application/json"]
    fields = set(optional(content["schema"], DOCUMENTS[dialect]["components"]["schemas"]))
    assert fields
    session = requests.Session()
    session.headers["X-Request-Id"] = "the same"

    def send(body: dict[str, Any]) -> requests.Response:
        check(dialect, content["schema"], body)
        return session.post(urls[dialect] + path.format(model=MODEL), json=body, timeout=30)

    for example in content["examples"].values():
        for field in fields:
            without = {name: value for name, value in example["value"].items() if name != field}
            # Scores' texts are optional fields of which two are wanted; documents, of another API's body here.
            if TEXTS & (example["value"].keys() - without):
                continue
            left_out, null = send(without), send({**without, field: None})
            # At the root a field may be all that tells its API: without it, the call is another's.
            assert null.status_code == left_out.status_code in (200, 404), f"{field}: {null.text}"
            assert without_the_clock(null) == without_the_clock(left_out), field
            for header in ("X-Rerankd-Ignored", "X-Rerankd-Truncated"):
                assert null.headers.get(header) == left_out.headers.get(header), field


def test_null_in_a_required_field_is_refused(urls: dict[str, str]) -> None:
    for body in ({"query": None, "documents": ["a"]}, {"query": "a", "documents": None}):
        assert requests.post(f"{urls['vllm']}/v1/rerank", json=body, timeout=30).status_code == 400


@pytest.fixture(scope="module")
def others() -> Iterator[dict[int, dict[str, str]]]:
    """Servers that refuse whatever they are sent with a status."""
    fake = FakeReranker()
    full, locked, hasty = {"max_calls": 1}, {"keys": ("k",)}, {"body_timeout": 0.1}
    late = FakeReranker()
    late.answer_all = late.label = lambda request: late._wait()  # type: ignore[assignment, method-assign]
    with (
        ThreadPoolExecutor() as pool,
        running(fake, Settings(names=(MODEL,), **full)) as full_vllm,
        running(fake, Settings(names=(MODEL,), dialect="sglang", **full)) as full_sglang,
        running(fake, Settings(names=(MODEL,), **locked)) as locked_vllm,
        running(fake, Settings(names=(MODEL,), dialect="sglang", **locked)) as locked_sglang,
        running(fake, Settings(names=(MODEL,), **hasty)) as hasty_vllm,
        running(fake, Settings(names=(MODEL,), dialect="sglang", **hasty)) as hasty_sglang,
        running(late, Settings(names=(MODEL,), request_timeout=0.1)) as late_vllm,
        running(late, Settings(names=(MODEL,), request_timeout=0.1, dialect="sglang")) as late_sglang,
    ):
        body = {"query": "wait", "documents": ["a"]}
        # They hold these servers full while all tests of the module run.
        calls = [
            pool.submit(requests.post, f"{url}/v1/rerank", json=body, timeout=900) for url in (full_vllm, full_sglang)
        ]
        until(lambda: len(fake.requests) == 2)
        yield {
            429: {"vllm": full_vllm, "sglang": full_sglang},
            401: {"vllm": locked_vllm, "sglang": locked_sglang},
            408: {"vllm": hasty_vllm, "sglang": hasty_sglang},
            504: {"vllm": late_vllm, "sglang": late_sglang},
        }
        fake.gate.set()
        assert [call.result().status_code for call in calls] == [200, 200]


def slowly(start: bytes) -> Iterator[bytes]:
    """The start of a body whose end does not come in time."""
    yield start
    time.sleep(0.4)


def bad_bodies(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A body with each thing that can be wrong with one."""
    query = next(name for name in ("query", "text_1", "queries", "prompt", "input", "inputs", "ids") if name in body)
    texts = next((name for name in ("documents", "texts", "items", "text_2", "passages") if name in body), query)

    def said(text: str) -> Any:
        return {"text": text} if isinstance(body[query], dict) else text

    yield {**body, query: 1}
    yield {**body, texts: []}
    yield {**body, "model": "another"}
    yield {**body, texts: [LONG], "truncation": False, "truncate": False, "top_n": 1}
    yield {**body, query: said("a" * (1 << 20))}
    for word in ("break", "close"):
        if path_has_model := isinstance(body[query], list) and isinstance(body[query][0], dict):
            yield {**body, query: [{**body[query][0], "data": [word]}, *body[query][1:]]}
        if query != "prompt" and not path_has_model:
            yield {**body, query: said(word)}


@pytest.mark.parametrize(("dialect", "path"), POSTS)
def test_each_status_that_is_described_is_given_and_no_other(
    urls: dict[str, str], others: dict[int, dict[str, str]], dialect: str, path: str
) -> None:
    content = operation(dialect, "post", path)["requestBody"]["content"]["application/json"]
    place = path.format(model=MODEL)
    url = urls[dialect] + place
    responses = [requests.post(url, data=b"{", headers={"Content-Type": "application/json"}, timeout=30)]
    responses.append(requests.post(url, data=b"{}", headers={"Content-Type": "text/plain"}, timeout=30))
    for example in content["examples"].values():
        responses.append(requests.post(url, json=example["value"], timeout=30))
        responses += [requests.post(url, json=bad, timeout=30) for bad in bad_bodies(example["value"])]
        for status in (429, 401, 504):
            responses.append(requests.post(others[status][dialect] + place, json=example["value"], timeout=30))
    headers = {"Content-Type": "application/json"}
    responses.append(requests.post(others[408][dialect] + place, data=slowly(b"{"), headers=headers, timeout=30))
    if place != path:
        responses.append(requests.post(urls[dialect] + path.format(model="other"), json=example["value"], timeout=30))
    for response in responses:
        as_described(dialect, "post", path, response)
    given = {str(response.status_code) for response in responses}
    # Nothing is scored there, so nothing can be too late or fail.
    never = {"424", "500", "503", "504"} if path.endswith(("/tokenize", "/decode")) else set()
    # Infinity's rerank cuts whatever is too long; what an engine refuses all the same would be a 400.
    never |= {"400"} if path.startswith("/infinity") and "embeddings" not in path else set()
    # Only vLLM's API knows a model that is not there, and none of these bodies is vLLM's.
    never |= {"404"} if dialect == "sglang" and path != "/v1/score" else set()
    assert given == set(operation(dialect, "post", path)["responses"]) - never


def test_every_route_and_field_is_described() -> None:
    document = DOCUMENTS["vllm"]
    for path, operations in document["paths"].items():
        for method, described in operations.items():
            assert described["summary"], (method, path)
            assert all(response["description"] for response in described["responses"].values()), (method, path)
    schemas = document["components"]["schemas"]
    bodies = [name for name in schemas if name.endswith("Body")]
    assert len(bodies) > 8
    for name in bodies:
        assert schemas[name]["description"], name
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description"), f"{name}.{field}"
            required = field in schemas[name].get("required", ())
            assert required or "default" in schema, f"{name}.{field}"


@pytest.mark.parametrize("protect_all", [True, False])
def test_a_server_with_keys_says_so(protect_all: bool) -> None:
    settings = Settings(names=(MODEL,), keys=("k",), protect_all=protect_all)
    document = create_app(Decoder(), settings).openapi()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"key": []}]
    for path in ("/health", "/metrics", "/ping", "/vllm/ping", "/health_generate", "/ready"):
        assert (document["paths"][path]["get"].get("security") == []) is not protect_all
    assert "security" not in document["paths"]["/version"]["get"]
    assert "security" not in DOCUMENTS["vllm"]


def test_the_page_needs_nothing_from_elsewhere(urls: dict[str, str]) -> None:
    page = requests.get(f"{urls['vllm']}/docs", timeout=30).text
    assert "http://" not in page
    assert "https://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f'"/static-offline-docs/{name}"' in page
        assert requests.get(f"{urls['vllm']}/static-offline-docs/{name}", timeout=30).status_code == 200
