"""Whatever the OpenAPI document allows, and what it forbids, is answered as it describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS

from rerankd.server.app import create_app
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, running
from tests.server.test_openapi import TWICE, Decoder

KEY = "k"
OPEN = Settings(names=(MODEL,), max_body=1 << 20)
LOCKED = Settings(names=(MODEL,), max_body=1 << 20, keys=(KEY,))
# Bodies are read as pydantic reads them, in vLLM as here: 0 is false, "1" is 1. And a document cannot say what a model
# cannot read: a picture, or labels that it has not.
LEFT_OUT = {"negative_data_rejection", "positive_data_acceptance"}


def checks() -> list[Any]:
    return [check for check in CHECKS.get_all() if check.__name__ not in LEFT_OUT]


def document(of: Settings) -> Any:
    config = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})
    return schemathesis.openapi.from_dict(create_app(Decoder(), of).openapi(), config=config)


open_schema, locked_schema = document(OPEN).exclude(path=sorted(TWICE)), document(LOCKED)
quick = settings(
    max_examples=15,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    with running(Decoder(), OPEN) as url:
        yield url


@pytest.fixture(scope="module")
def locked_url() -> Iterator[str]:
    with running(Decoder(), LOCKED) as url:
        yield url


@open_schema.parametrize()
@quick
def test_every_call_is_answered_as_described(case: Any, open_url: str) -> None:
    case.call_and_validate(base_url=open_url, checks=checks())


@locked_schema.include(path_regex="^/(vllm|cohere)/|^/(v1/models|health|metrics)$").parametrize()
@settings(quick, max_examples=5)
def test_keys_are_asked_for_as_described(case: Any, locked_url: str) -> None:
    case.call_and_validate(base_url=locked_url, headers={"Authorization": f"Bearer {KEY}"}, checks=checks())
