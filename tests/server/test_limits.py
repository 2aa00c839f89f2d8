"""What bodies may hold: their JSON, and every list in every dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rerankd.limits import RequestLimits
from rerankd.server import body as bodies
from rerankd.server.body import encode_json, parse_json
from rerankd.server.dialects import DIALECTS
from rerankd.server.dialects.base import Nothing
from rerankd.server.problems import Problem, checked

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
BODIES = {
    f"{dialect.name} {endpoint.paths[0]} {endpoint.body.__name__}": endpoint.body
    for dialect in DIALECTS.values()
    for endpoint in dialect.endpoints
    if endpoint.body is not Nothing
}


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Bodies are read as large ones are, or as small ones."""
    monkeypatch.setattr(bodies, "LARGE", 0 if request.param == "large" else 1 << 30)
    return str(request.param)


@given(value=st.dictionaries(st.text(), VALUES, max_size=4), ascii=st.booleans())
def test_a_large_body_is_read_as_a_small_one(value: dict[str, Any], ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    wanted = json.loads(json.dumps(value))
    with pytest.MonkeyPatch.context() as patch:
        for large in (0, 1 << 30):
            patch.setattr(bodies, "LARGE", large)
            assert parse_json(text, RequestLimits()) == wanted
    assert json.loads(encode_json(value, large=True)) == json.loads(encode_json(value)) == wanted


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_are_finite(size: str, number: str) -> None:
    with pytest.raises(Problem, match="is not a finite number") as refused:
        parse_json(f'{{"a": [{{"b": {number}}}]}}'.encode(), RequestLimits())
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "text", ["", "{", "[", '{"a": 1,}', '{"a" 1}', "{} {}", '{"a": [1 2]}', "\ufeff{", '{"\n": 1}']
)
def test_what_is_not_json_is_refused(size: str, text: str) -> None:
    with pytest.raises(Problem, match="not valid JSON"):
        parse_json(text.encode(), RequestLimits())


def test_deep_nesting_is_refused(size: str) -> None:
    with pytest.raises(Problem, match="nested too deeply"):
        parse_json(b'{"a":' + b"[" * 100_000, RequestLimits())


def test_values_are_counted_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LARGE", 0)
    for text, count in (
        (b'{"a": [1, 2, "3"]}', 4),
        (b'{"a": {"b": 1, "c": [{}, null]}}', 5),
        (b'{"a": [[], [1.5]]}', 4),
    ):
        assert parse_json(text, RequestLimits(values=count)) == json.loads(text)
        with pytest.raises(Problem, match="--max-request-values") as refused:
            parse_json(text, RequestLimits(values=count - 1))
        assert refused.value.well_formed


def lists(schema: Any, counted: bool = False) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every list in a pydantic schema, and whether it is looked at before its elements."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema, counted
        before = schema.get("type") == "function-before"
        for value in schema.values():
            yield from lists(value, before and value is schema.get("schema"))
    elif isinstance(schema, (list, tuple)):
        for value in schema:
            yield from lists(value)


def test_every_list_of_every_body_is_counted_first_and_fails_at_its_first_error() -> None:
    found = 0
    for name, body in BODIES.items():
        for schema, counted in lists(body.__pydantic_core_schema__):
            found += 1
            assert counted, f"{name}: a list of {schema['items_schema']} is not of dialects.lists"
            assert schema["fail_fast"], f"{name}: {schema}"
    assert found > 20


@pytest.mark.parametrize("name", [name for name in BODIES if "/rerank " in name])
def test_a_list_above_its_limit_is_refused_whatever_it_holds(name: str) -> None:
    body: type[BaseModel] = BODIES[name]
    field = "texts" if "texts" in body.model_fields else "documents"
    limits = RequestLimits(documents=3)
    assert checked(body, {"query": "a", field: ["b"] * 3}, limits)
    for element in ("b", 1, {}, ["b"], None):
        with pytest.raises(Problem, match=f"^{field}: holds more than 3 documents") as refused:
            checked(body, {"query": "a", field: [element] * 4}, limits)
        assert (refused.value.status, refused.value.well_formed) == (400, True)


def test_parts_are_counted_together() -> None:
    body = BODIES["vllm /rerank VllmRerankBody"]
    limits = RequestLimits(parts=4)
    assert checked(body, {"query": ["a"], "documents": [["b", "c"], {"content": ["d"]}]}, limits)
    with pytest.raises(Problem, match="--max-request-parts"):
        checked(body, {"query": ["a", "a"], "documents": [["b", "c"], {"content": ["d"]}]}, limits)
