"""Triton's HTTP client as it is published, with nothing changed but where it calls: rerank as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from conftest import DOCUMENTS, KEY, QUERY

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def key() -> dict[str, str]:
    """Anew for each call: the client adds the length of its JSON to the headers that it is given."""
    return {"Authorization": f"Bearer {KEY}"}


def tensor(name: str, texts: Sequence[Any], binary: bool | None) -> triton.InferInput:
    """binary: None for what the client does by itself, which is True"""
    tensor = triton.InferInput(name, [len(texts)], "BYTES")
    data = np.array(texts, dtype=np.object_)
    return tensor.set_data_from_numpy(data) if binary is None else tensor.set_data_from_numpy(data, binary_data=binary)


@pytest.fixture(scope="session")
def in_order(expected: list[tuple[int, float]]) -> list[float]:
    """The scores in the order of DOCUMENTS."""
    return [score for _, score in sorted(expected)]


@pytest.mark.parametrize("base", ["", "/kserve"])
@pytest.mark.parametrize("binary", [None, True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_triton(server: str, in_order: list[float], base: str, binary: bool | None, asked: bool | None) -> None:
    """asked: whether the output is asked for by name, as bytes or not"""
    client = triton.InferenceServerClient(server.removeprefix("http://") + base)
    outputs = None if asked is None else [triton.InferRequestedOutput("scores", binary_data=asked)]
    inputs = [tensor("query", [QUERY], binary), tensor("documents", DOCUMENTS, binary)]
    for model, version in ((MODEL, ""), ("all-MiniLM-L6-v2", ""), (MODEL, "1")):
        answer = client.infer(model, inputs, model_version=version, outputs=outputs, request_id="mine", headers=key())
        scores = answer.as_numpy("scores")
        assert scores.dtype == np.float32
        assert scores.tolist() == pytest.approx(in_order, abs=1e-4)
        assert answer.get_response()["id"] == "mine"
    client.close()


def test_triton_reads_health_and_facts(server: str) -> None:
    client = triton.InferenceServerClient(server.removeprefix("http://"))
    # Without a key, as probes.
    assert client.is_server_live()
    assert client.is_server_ready()
    for version in ("", "1"):
        assert client.is_model_ready(MODEL, version)
        assert client.get_model_metadata(MODEL, version, headers=key())["versions"] == ["1"]
    assert client.get_server_metadata(headers=key())["name"] == "rerankd"
    client.close()


def test_triton_raises_its_own_errors(server: str) -> None:
    client = triton.InferenceServerClient(server.removeprefix("http://"))
    with pytest.raises(InferenceServerException, match="API key"):
        client.infer(MODEL, [tensor("query", [QUERY], None), tensor("documents", DOCUMENTS, None)])
    with pytest.raises(InferenceServerException, match=r"inputs\[1\].data\[1\]: is not UTF-8"):
        client.infer(MODEL, [tensor("query", [QUERY], None), tensor("documents", ["a", b"\xff"], None)], headers=key())
    with pytest.raises(InferenceServerException, match="`other` does not exist"):
        client.infer("other", [tensor("query", [QUERY], None), tensor("documents", ["a"], None)], headers=key())
    client.close()
