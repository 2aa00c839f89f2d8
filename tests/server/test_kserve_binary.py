"""The Open Inference Protocol's binary tensors: the bytes that tritonclient and KServe's client send by default."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerankd.core import text_content
from rerankd.server.service import Service
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, fake_score
from tests.server.raw import sent
from tests.server.test_kserve import INFER, tensor

QUERY, DOCUMENTS = "what is panda?", ["hi", "The giant panda is a bear.", "né 🐼"]
SCORES = [fake_score(text_content(QUERY), text_content(document)) for document in DOCUMENTS]
HEADER = "Inference-Header-Content-Length"


def elements(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


def binary(name: str, data: bytes, count: int, **fields: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": len(data)}
    return {"name": name, "datatype": "BYTES", "shape": [count], "parameters": parameters, **fields}


Q, D = elements([QUERY]), elements(DOCUMENTS)
TEXTS = binary("query", Q, 1), binary("documents", D, 3)


def post(url: str, inputs: Sequence[Any], data: bytes, headers: dict[str, str | None], **fields: Any) -> Any:
    """headers: beside HEADER; one of None is left out"""
    head = json.dumps({"inputs": inputs, **fields}).encode()
    called = {HEADER: str(len(head)), "Content-Type": "application/octet-stream", **headers}
    return requests.post(url + INFER, data=head + data, headers=called, timeout=30)


def scores(answer: requests.Response) -> Any:
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["datatype"] == "FP32"
    assert output["shape"] == [len(output["data"])]
    return output["data"]


# As kserve 0.21's InferenceRESTClient sent it, but for the documents' last.
KSERVE = (
    b"POST /v2/models/example/reranker/infer HTTP/1.1\r\nHost: HOST\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\n"
    b"inference-header-content-length: 215\r\ncontent-type: application/octet-stream\r\nContent-Length: 281\r\n\r\n"
    b'{"id":"mine","model_name":"m","inputs":[{"name":"query","shape":[1],"datatype":"BYTES","parameters":'
    b'{"binary_data_size":18}},{"name":"documents","shape":[3],"datatype":"BYTES","parameters":'
    b'{"binary_data_size":48}}]}\x0e\x00\x00\x00what is panda?\x02\x00\x00\x00hi'
    b"\x1a\x00\x00\x00The giant panda is a bear.\x08\x00\x00\x00n\xc3\xa9 \xf0\x9f\x90\xbc"
)


def test_kserves_client_is_answered(vllm_server: str) -> None:
    status, headers, body = sent(vllm_server, KSERVE)
    assert status == 200, body
    assert json.loads(body) == {
        "model_name": MODEL,
        "id": "mine",
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [3], "data": SCORES}],
    }
    assert HEADER not in headers
    assert headers["X-Rerankd-Ignored"] == "model_name"  # the path's counts


def test_tritons_client_is_answered(vllm_server: str) -> None:
    """It names no type, and asks for binary outputs; it reads JSON too (tests/clients)."""
    answer = post(vllm_server, TEXTS, Q + D, {"Content-Type": None}, parameters={"binary_data_output": True})
    assert scores(answer) == SCORES
    assert answer.headers["X-Rerankd-Ignored"] == "parameters"
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    answer = post(vllm_server, TEXTS, Q + D, {"Content-Type": None}, outputs=outputs)
    assert scores(answer) == SCORES
    assert answer.headers["X-Rerankd-Ignored"] == "outputs[0].parameters"


def test_an_input_in_json_beside_one_in_bytes(vllm_server: str) -> None:
    for content_type in ("application/json", "application/octet-stream"):
        called: dict[str, str | None] = {"Content-Type": content_type}
        assert scores(post(vllm_server, (TEXTS[1], tensor("query", [QUERY])), D, called)) == SCORES
        assert scores(post(vllm_server, (tensor("documents", DOCUMENTS), TEXTS[0]), Q, called)) == SCORES
        json_alone = tensor("documents", DOCUMENTS), tensor("query", [QUERY])
        assert scores(post(vllm_server, json_alone, b"", called)) == SCORES
    column = {**TEXTS[1], "shape": [3, 1]}
    assert scores(post(vllm_server, (TEXTS[0], column), Q + D, {})) == SCORES
    more = {**TEXTS[0], "parameters": {"binary_data_size": len(Q), "priority": 1}}
    answer = post(vllm_server, (more, TEXTS[1]), Q + D, {})
    assert answer.headers["X-Rerankd-Ignored"] == "inputs[0].parameters"


def test_a_large_body_and_empty_texts(vllm_server: str, fake: FakeReranker) -> None:
    texts = ["", "a" * 100_000, "\x00", "ü" * 20_000]
    data = elements(texts)
    answer = post(vllm_server, (TEXTS[0], binary("documents", data, 4)), Q + data, {})
    assert scores(answer) == [fake_score(text_content(QUERY), text_content(text)) for text in texts]


def sized(size: Any) -> dict[str, Any]:
    return {**TEXTS[1], "parameters": {"binary_data_size": size}}


def of(data: bytes, count: int = 1) -> tuple[dict[str, Any], bytes]:
    return binary("documents", data, count), data


SIZE, ELEMENT, THREE = "inputs[1].parameters.binary_data_size", "inputs[1].data[0]", struct.pack("<I", 3)
WRONG: dict[str, tuple[tuple[Any, bytes], str]] = {
    "a size beyond the body": ((TEXTS[1], D[:-1]), f"{SIZE}: is 48, and 47 bytes are left of the body."),
    "bytes behind the data": ((TEXTS[1], D + b"x"), "The body has 1 bytes behind its JSON and the data of its inputs"),
    "a negative size": ((sized(-1), b""), f"{SIZE}: must be a number of bytes."),
    "a size that is true": ((sized(True), b"x"), f"{SIZE}: must be a number of bytes."),
    "a size that is a text": ((sized("48"), D), f"{SIZE}: must be a number of bytes."),
    "a size that is a list": ((sized([10**4000] * 50), D), f"{SIZE}: must be a number of bytes."),
    "a huge size": ((sized(10**30), D), f"{SIZE}: is 1000"),
    "an element beyond its tensor": (of(THREE + b"ab"), f"{ELEMENT}: goes beyond the 6 bytes of its tensor"),
    "an element of four gigabytes": (of(b"\xff" * 8), f"{ELEMENT}: goes beyond the 8 bytes"),
    "a length of three bytes": (of(D + b"\x00" * 3, 3), "inputs[1].data[3]: goes beyond the 51 bytes"),
    "no UTF-8": (of(THREE + b"a\xffb"), f"{ELEMENT}: is not UTF-8: byte 1 does not decode."),
    "half of a surrogate pair": (of(THREE + b"\xed\xa0\x80"), f"{ELEMENT}: is not UTF-8"),
    "numbers": (({**TEXTS[1], "datatype": "FP32"}, D), "inputs[1].datatype: must be BYTES"),
    "no datatype": (({**TEXTS[1], "datatype": None}, D), "inputs[1].datatype: must be BYTES"),
    "texts twice": (({**TEXTS[1], "data": ["a"]}, D), "inputs[1].data: is given beside `parameters.binary_data_size`"),
    "a shape of more": (({**TEXTS[1], "shape": [4]}, D), "inputs[1].shape: [4] does not fit 3 elements."),
    # The one behind the limit is not looked at: a body has room for millions of empty texts.
    "too many": (of(b"\x00" * 40_000 + THREE + b"a\xffb", 10_001), "inputs[1].data: holds more than 10,000 documents"),
    "no elements": (of(b"", 0), "inputs[1].data: must hold at least one document."),
    "no object": ((1, b""), "inputs[1]: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tensor_is_refused(vllm_server: str, case: str) -> None:
    (documents, data), told = WRONG[case]
    answer = post(vllm_server, (TEXTS[0], documents), Q + data, {})
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(told)


def test_the_texts_of_all_tensors_are_counted(vllm_server: str) -> None:
    """A body has room for millions, whatever the tensors are called."""
    data = b"\x00" * 4 * 3_000
    inputs = [binary("documents", data, 3_000)] * 4
    answer = post(vllm_server, inputs, data * 4, {})
    assert answer.json()["error"].startswith("inputs[3].data: holds more than 10,000 documents")


def test_a_tensor_takes_no_bytes_of_the_next(vllm_server: str) -> None:
    inputs = binary("query", THREE + b"ab", 1), TEXTS[1]
    answer = post(vllm_server, inputs, THREE + b"ab" + D, {})
    assert answer.json()["error"].startswith("inputs[0].data[0]: goes beyond the 6 bytes of its tensor")


@pytest.mark.parametrize("header", ["100000", "-1", "9" * 5_000, "ten", "", "+10", "1_0"])
def test_a_wrong_length_of_the_json_is_refused(vllm_server: str, header: str) -> None:
    answer = post(vllm_server, TEXTS, Q + D, {HEADER: header})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"The header {HEADER} is '{header[:40]}")
    assert "it must be the length in bytes of the JSON" in answer.json()["error"]


def test_a_length_that_ends_within_the_json_is_refused(vllm_server: str) -> None:
    for header in ("0", "20"):
        answer = post(vllm_server, TEXTS, Q + D, {HEADER: header})
        assert (answer.status_code, answer.json()["error"][:26]) == (400, "The body is not valid JSON")


def test_binary_data_without_their_header_are_told_of_it(vllm_server: str) -> None:
    called: dict[str, str | None] = {HEADER: None, "Content-Type": "application/json"}
    answer = post(vllm_server, TEXTS, b"", called)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("inputs[0].parameters.binary_data_size: is 18, and 0 bytes are left")
    assert f"the header {HEADER} gives" in answer.json()["error"]


def test_binary_data_need_their_header_and_their_route(vllm_server: str) -> None:
    assert post(vllm_server, TEXTS, Q + D, {HEADER: None}).status_code == 415
    body = json.dumps({"query": "a", "documents": ["b"]}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(body))}
    assert requests.post(f"{vllm_server}/v1/rerank", data=body, headers=headers, timeout=30).status_code == 415


def test_binary_data_without_a_socket() -> None:
    head = json.dumps({"inputs": TEXTS}).encode()
    service = Service(FakeReranker(), Settings(names=(MODEL,)))
    reply = asyncio.run(service.call("POST", INFER, head + Q + D, {HEADER: str(len(head))}))
    assert (reply.status, json.loads(reply.body)["outputs"][0]["data"]) == (200, SCORES)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(-1, 60), min_size=2, max_size=2),
    data=st.binary(max_size=60) | st.lists(st.text(max_size=5), max_size=5).map(elements),
    shift=st.integers(-3, 3),
)
def test_no_bytes_give_a_500(vllm_server: str, sizes: list[int], data: bytes, shift: int) -> None:
    inputs = [{**one, "parameters": {"binary_data_size": size}} for one, size in zip(TEXTS, sizes, strict=True)]
    length = len(json.dumps({"inputs": inputs})) + shift
    assert post(vllm_server, inputs, data, {HEADER: str(length)}).status_code in (200, 400)
