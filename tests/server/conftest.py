"""Servers around a fake reranker, on real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running


@pytest.fixture(scope="session")
def fake() -> FakeReranker:
    return FakeReranker()


@pytest.fixture(scope="session")
def vllm_server(fake: FakeReranker) -> Iterator[str]:
    """A server as `rerankd serve` starts it, of a model with two names."""
    with running(fake, Settings(names=(MODEL, "short-name"), max_body=1 << 20)) as url:
        yield url


@pytest.fixture(scope="session")
def sglang_server(fake: FakeReranker) -> Iterator[str]:
    """A server as `rerankd.launch_server` starts it."""
    with running(fake, Settings(names=(MODEL,), dialect="sglang")) as url:
        yield url
