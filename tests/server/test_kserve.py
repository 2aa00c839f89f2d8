"""The Open Inference Protocol over a real socket: tensors of texts, scores in the order of the request, health."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import requests

from rerankd.core import EngineDead, text_content
from rerankd.server.problems import ENGINE_DEAD, SHUTTING_DOWN
from rerankd.server.service import Service
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, fake_score, running

QUERY, DOCUMENTS = "what is panda?", ["hi", "The giant panda is a bear.", "pandas eat bamboo"]
SCORES = [fake_score(text_content(QUERY), text_content(document)) for document in DOCUMENTS]
INFER = f"/v2/models/{MODEL}/infer"


def tensor(name: str, data: Any, shape: list[int] | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": shape or [len(data)], "data": data, **fields}


def infer(url: str, *inputs: dict[str, Any], path: str = INFER, **fields: Any) -> requests.Response:
    return requests.post(url + path, json={"inputs": list(inputs), **fields}, timeout=30)


def test_scores_in_the_order_of_the_request(vllm_server: str) -> None:
    query = tensor("query", [QUERY])
    response = infer(vllm_server, query, tensor("documents", DOCUMENTS), id="mine", parameters={"priority": 1})
    assert response.json() == {
        "model_name": MODEL,
        "id": "mine",
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [3], "data": SCORES}],
    }
    assert response.headers["X-Rerankd-Ignored"] == "parameters"
    column = tensor("documents", [[document] for document in DOCUMENTS], [3, 1])
    for path in (INFER, f"/kserve{INFER}", "/v2/models/short-name/infer"):
        answer = infer(vllm_server, column, query, path=path, outputs=[{"name": "scores"}])
        assert answer.json()["outputs"][0]["data"] == SCORES


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ([tensor("query", [QUERY])], "inputs"),
        ([tensor("query", [QUERY]), tensor("query", [QUERY])], "inputs"),
        ([tensor("query", [QUERY, "b"]), tensor("documents", ["a"])], "inputs[0].data"),
        ([tensor("documents", []), tensor("query", [QUERY])], "inputs[0].data"),
        ([tensor("query", [QUERY]), tensor("documents", ["a", "b"], [3])], "inputs[1].shape"),
        ([tensor("query", [QUERY]), tensor("documents", ["a"], [-1, -1])], "inputs[1].shape"),
        ([tensor("query", [QUERY]), tensor("documents", ["a"], [1] * 9)], "inputs[1].shape"),
        # The product of thousands of such numbers would take minutes, in which no other thread runs.
        ([tensor("query", [QUERY]), tensor("documents", ["a"], [10**4299] * 20)], "inputs[1].shape[0]"),
        ([tensor("query", [QUERY]), tensor("documents", ["a"], [1 << 31])], "inputs[1].shape[0]"),
        ([tensor("query", [QUERY]), tensor("documents", [1])], "inputs[1].data[0]"),
        ([tensor("query", [QUERY]), tensor("documents", ["a"], datatype="FP32")], "inputs[1].datatype"),
        ([tensor("query", [QUERY]), tensor("texts", ["a"])], "inputs[1].name"),
        ([tensor("query", [QUERY]), tensor("documents", [["a"] * 5_001, ["a"] * 5_000], [10_001])], "inputs[1].data"),
    ],
)
def test_what_is_refused(vllm_server: str, inputs: list[dict[str, Any]], field: str) -> None:
    response = infer(vllm_server, *inputs)
    assert response.status_code == 400
    assert response.json()["error"].startswith(f"{field}: ")


def test_a_model_of_another_name(vllm_server: str) -> None:
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/other/infer"):
        asked = requests.post if path.endswith("infer") else requests.get
        body = {"inputs": [tensor("query", ["a"]), tensor("documents", ["b"])]}
        response = asked(vllm_server + path, json=body, timeout=30)
        assert response.status_code == 404
        assert "`other` does not exist" in response.json()["error"]


def test_a_model_has_version_1(vllm_server: str) -> None:
    versioned = f"/v2/models/{MODEL}/versions/1"
    inputs = tensor("query", [QUERY]), tensor("documents", DOCUMENTS)
    for prefix in ("", "/kserve"):
        answer = infer(vllm_server, *inputs, path=f"{prefix}{versioned}/infer").json()
        assert (answer["model_name"], answer["outputs"][0]["data"]) == (MODEL, SCORES)
        known = requests.get(f"{vllm_server}{prefix}{versioned}", timeout=30).json()
        assert (known["name"], known["versions"]) == (MODEL, ["1"])
        ready = requests.get(f"{vllm_server}{prefix}{versioned}/ready", timeout=30).json()
        assert ready == {"name": MODEL, "ready": True}
    for path in ("versions/2", "versions/2/ready", "versions/1/2"):
        response = requests.get(f"{vllm_server}/v2/models/{MODEL}/{path}", timeout=30)
        assert response.status_code == 404
        assert f"This server has `{MODEL}`" in response.json()["error"]


@pytest.mark.parametrize("keys", [(), ("k",)])
def test_a_name_without_its_organisation_is_enough(keys: tuple[str, ...]) -> None:
    short = MODEL.rpartition("/")[2]
    assert short != MODEL
    inputs = [tensor("query", [QUERY]), tensor("documents", DOCUMENTS)]
    with running(FakeReranker(), Settings(names=(MODEL,), keys=keys)) as url:
        key = {"Authorization": "Bearer k"}
        answer = requests.post(f"{url}/v2/models/{short}/infer", json={"inputs": inputs}, headers=key, timeout=30)
        assert answer.json()["outputs"][0]["data"] == SCORES
        assert requests.get(f"{url}/v2/models/{short}", headers=key, timeout=30).json()["name"] == short
        assert requests.get(f"{url}/v2/models/{short}/ready", timeout=30).json() == {"name": short, "ready": True}


def test_a_models_probe_needs_no_key_and_tells_no_names() -> None:
    with running(FakeReranker(), Settings(names=(MODEL, "other"), keys=("k",))) as url:

        def asked(path: str, method: str = "GET") -> int:
            return requests.request(method, url + path, timeout=30).status_code

        for name in (MODEL, "other", f"{MODEL}/versions/1"):
            for prefix in ("", "/kserve"):
                assert asked(f"{prefix}/v2/models/{name}/ready") == 200
        assert asked(f"/v2/models/{MODEL}/ready", "HEAD") == 200
        for path in ("unknown/ready", MODEL, f"{MODEL}/infer", f"{MODEL}/infer/ready", f"{MODEL}/versions/2/ready"):
            assert asked(f"/v2/models/{path}") == 401
        assert asked(f"/v2/models/{MODEL}/infer", "POST") == 401
    with running(FakeReranker(), Settings(names=(MODEL,), keys=("k",), protect_all=True)) as url:
        assert asked(f"/v2/models/{MODEL}/ready") == 401


def test_health_while_the_server_ends_and_when_its_engine_has_failed() -> None:
    fake, settings = FakeReranker(), Settings(names=(MODEL,), keys=("k",))
    key = {"Authorization": "Bearer k"}

    def statuses(url: str) -> list[int]:
        paths = ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready")
        # NVIDIA's are the same, and need no key.
        for own in ("live", "ready"):
            answers = (requests.get(f"{url}/{prefix}/health/{own}", timeout=30) for prefix in ("v1", "v2"))
            assert len({answer.status_code for answer in answers}) == 1
        return [requests.get(url + path, headers=key, timeout=30).status_code for path in paths]

    with running(fake, settings) as url:
        assert statuses(url) == [200, 200, 200]
        assert requests.get(f"{url}/v2/health/ready", timeout=30).json() == {"ready": True}
        assert requests.get(f"{url}/v2/models/{MODEL}", timeout=30).status_code == 401
        settings.draining.set()
        assert statuses(url) == [200, 503, 503]
        fake.failure = EngineDead("gone")
        assert statuses(url) == [503, 503, 503]
    for told in (ENGINE_DEAD, SHUTTING_DOWN):
        assert told.__traceback__ is None  # which would grow with each probe


def test_a_path_with_a_name_without_a_socket() -> None:
    service = Service(FakeReranker(), Settings(names=(MODEL,)))
    body = json.dumps({"inputs": [tensor("query", [QUERY]), tensor("documents", DOCUMENTS)]}).encode()

    def call(method: str, path: str) -> tuple[int, Any]:
        reply = asyncio.run(service.call(method, path, body))
        return reply.status, json.loads(reply.body)

    status, answer = call("POST", INFER)
    assert (status, answer["outputs"][0]["data"]) == (200, SCORES)
    assert call("GET", f"/v2/models/{MODEL}/ready") == (200, {"name": MODEL, "ready": True})
    assert call("GET", f"/kserve/v2/models/{MODEL}")[1]["platform"] == "rerankd"
    assert call("PUT", INFER)[0] == 405
    assert call("GET", "/v2/models/")[0] == 404
