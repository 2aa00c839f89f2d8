"""NVIDIA NIM's `truncate`, with a model that a passage does not fit: the container refuses by default, the hosted API
cuts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rerankd import Reranker
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, running

CONTAINER = ("/v1/ranking", "/ranking", "/nvidia/v1/ranking", "/nvidia/ranking")
HOSTED = ("/v1/retrieval/nvidia/a-model/reranking", "/nvidia/v1/retrieval/nvidia/a-model/reranking")


@pytest.fixture(scope="module")
def url(bert_checkpoint: Path) -> Iterator[str]:
    short = Reranker(str(bert_checkpoint), dtype="float32", max_model_len=64)
    with short as reranker, running(reranker, Settings(names=(MODEL,))) as url:
        yield url


def rank(url: str, path: str, **fields: Any) -> requests.Response:
    passages = [{"text": "short"}, {"text": "word " * 200}]
    return requests.post(url + path, json={"query": {"text": "a"}, "passages": passages, **fields}, timeout=60)


@pytest.mark.parametrize("path", [*CONTAINER, *HOSTED])
@pytest.mark.parametrize("truncate", ["NONE", "END", None])
def test_a_passage_that_does_not_fit(url: str, path: str, truncate: str | None) -> None:
    answer = rank(url, path, truncate=truncate)
    if truncate == "END" or (truncate is None and path in HOSTED):
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Rerankd-Truncated"] == "documents 1"
        assert answer.json()["usage"]["total_tokens"] < 100
        return
    told = answer.json()
    assert (answer.status_code, told["detail"]) == (400, {"loc": ["body", "passages[1]"]})
    assert told["message"].startswith("passages[1]: its prompt takes 2")
    assert told["message"].endswith('64 are allowed; shorten it, or allow truncation (`"truncate": "END"`)')


def test_passages_that_fit_need_no_field(url: str) -> None:
    answer = rank(url, "/v1/ranking", passages=[{"text": "short"}])
    assert answer.status_code == 200
    assert "X-Rerankd-Truncated" not in answer.headers
