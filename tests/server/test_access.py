"""Keys, CORS, a path before all paths: who may call, over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from rerankd.server.dialects import DIALECTS
from rerankd.server.settings import Cors, Settings
from tests.server.fakes import MODEL, FakeReranker, running

KEYS = ("first-key", "zweiter")
BODY = {"query": "a", "documents": ["b"]}
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    cors = Cors((PAGE,), ("POST",), ("authorization", "content-type"))
    with running(FakeReranker(), Settings(names=(MODEL,), keys=KEYS, cors=cors)) as url:
        yield url


def call(url: str, authorization: str | None, path: str = "/v1/rerank") -> requests.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return requests.post(url + path, json=BODY, headers=headers, timeout=30)


@pytest.mark.parametrize("authorization", ["Bearer first-key", "bearer zweiter", "BEARER  first-key "])
def test_any_key_opens(locked: str, authorization: str) -> None:
    assert call(locked, authorization).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer first", "Bearer first-key1", "first-key", "Basic first-key", "Bearer ä"],
)
def test_nothing_else_does(locked: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    response = requests.post(f"{locked}/v1/rerank", json=BODY, headers=headers, timeout=30)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == 401


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/v1/models", "/version", "/nowhere", "/health/", "/info"])
def test_every_path_is_behind_the_keys(locked: str, path: str) -> None:
    assert requests.get(locked + path, timeout=30).status_code == 401


PROBES = [
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("GET", "/tei/health"),
    ("HEAD", "/infinity/health"),
    ("GET", "/metrics"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("HEAD", "/vllm/ping"),
    ("GET", "/ready"),
    ("GET", "/health_generate"),
    ("GET", "/sglang/health_generate"),
]


def test_probes_are_open_unless_told_otherwise(locked: str) -> None:
    for method, path in PROBES:
        assert requests.request(method, locked + path, timeout=30).status_code == 200, path
    with running(FakeReranker(), Settings(names=(MODEL,), keys=KEYS, protect_all=True)) as url:
        for method, path in PROBES:
            assert requests.request(method, url + path, timeout=30).status_code == 401, path
            headers = {"Authorization": "Bearer zweiter"}
            assert requests.request(method, url + path, headers=headers, timeout=30).status_code == 200, path


ERRORS = {
    "vllm": {"error"},
    "sglang": {"object", "message", "type", "param", "code"},
    "cohere": {"message"},
    "tei": {"error", "error_type"},
    "infinity": {"error"},
    "voyage": {"detail"},
    "jina": {"detail"},
    "nvidia": {"object", "message", "detail", "type"},
    "weaviate": {"error"},
    "elastic": {"error"},
    "kserve": {"error"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_refusal_has_the_dialects_shape(locked: str, dialect: str) -> None:
    response = call(locked, None, f"/{dialect}/v1/rerank")
    assert response.status_code == 401
    assert set(response.json()) == ERRORS[dialect]
    with running(FakeReranker(), Settings(names=(MODEL,), dialect=dialect, keys=KEYS)) as url:
        assert set(call(url, "Bearer wrong").json()) == ERRORS[dialect]
        headers = {"X-Fern-SDK-Name": "cohere"}
        answer = requests.post(f"{url}/v2/rerank", json=BODY, headers=headers, timeout=30).json()
        assert set(answer) == ERRORS["cohere"]


def test_a_browser_is_told_what_it_may_do(locked: str) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    told = requests.options(f"{locked}/v1/rerank", headers=asked, timeout=30)
    assert told.status_code == 200
    assert told.headers["Access-Control-Allow-Origin"] == PAGE
    assert told.headers["Access-Control-Allow-Methods"] == "POST"
    refused = requests.post(f"{locked}/v1/rerank", json=BODY, headers={"Origin": PAGE}, timeout=30)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, PAGE)
    for change in ({"Origin": "https://evil.example"}, {"Access-Control-Request-Method": "DELETE"}):
        assert requests.options(f"{locked}/v1/rerank", headers={**asked, **change}, timeout=30).status_code == 400


def test_without_cors_a_browser_is_told_nothing(vllm_server: str) -> None:
    response = requests.post(f"{vllm_server}/v1/rerank", json=BODY, headers={"Origin": PAGE}, timeout=30)
    assert response.status_code == 200
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_a_path_before_all_paths(vllm_server: str) -> None:
    settings = Settings(names=(MODEL,), keys=KEYS, root_path="/ai/rerank")
    with running(FakeReranker(), settings) as url:
        for before in ("", "/ai/rerank"):  # a proxy may take it away, or leave it
            assert call(url, "Bearer zweiter", f"{before}/v1/rerank").status_code == 200
            assert set(call(url, None, f"{before}/tei/rerank").json()) == ERRORS["tei"]
            assert requests.get(f"{url}{before}/health", timeout=30).status_code == 200
        headers = {"Authorization": "Bearer zweiter"}
        openapi = requests.get(f"{url}/openapi.json", headers=headers, timeout=30).json()
        assert openapi["servers"] == [{"url": "/ai/rerank"}]
    assert call(vllm_server, None, "/ai/rerank/v1/rerank").status_code == 404
