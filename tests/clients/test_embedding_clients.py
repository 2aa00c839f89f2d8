"""Clients of embedding APIs as they are published, with nothing changed but where they call."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from conftest import DOCUMENTS, KEY

WIDTH = 384


@pytest.fixture(scope="session")
def vectors(server: str) -> Any:
    """The vectors of DOCUMENTS, as JSON has them."""
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"inputs": DOCUMENTS}
    answer = requests.post(f"{server}/tei/embed", json=body, headers=headers, timeout=60).json()
    found = np.array(answer)
    assert found.shape == (len(DOCUMENTS), WIDTH)
    return found


def test_openai(server: str, vectors: Any) -> None:
    """It asks for base64 unless it is told otherwise, and reads both."""
    client = openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0)
    for answer in (
        client.embeddings.create(model="sentence-transformers/all-MiniLM-L6-v2", input=DOCUMENTS),
        client.embeddings.create(
            model="sentence-transformers/all-MiniLM-L6-v2", input=DOCUMENTS, encoding_format="float"
        ),
    ):
        assert [one.index for one in answer.data] == list(range(len(DOCUMENTS)))
        assert np.array([one.embedding for one in answer.data]) == pytest.approx(vectors, abs=1e-6)
        assert answer.usage.prompt_tokens > len(DOCUMENTS)
    short = client.embeddings.create(
        model="sentence-transformers/all-MiniLM-L6-v2", input=DOCUMENTS[0], dimensions=8, user="me"
    )
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert len(short.data[0].embedding) == 8


def test_openai_raises_its_own_errors(server: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="wrong").embeddings.create(model="m", input="a")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key=KEY)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="sentence-transformers/all-MiniLM-L6-v2", input="a", dimensions=WIDTH + 1)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize("base", ["/embed", "/tei/embed"])
def test_huggingface_hub(server: str, vectors: Any, base: str) -> None:
    client = InferenceClient(model=server + base, token=KEY)
    found = client.feature_extraction(DOCUMENTS[0], normalize=True, truncate=True, truncation_direction="right")
    assert found.dtype == np.float32
    assert found == pytest.approx(vectors[:1], abs=1e-6)
    with pytest.raises(HfHubHTTPError, match="prompt_name: is 'no such prompt', and"):
        client.feature_extraction(DOCUMENTS[0], prompt_name="no such prompt")
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=server + base, token="wrong").feature_extraction("a")
