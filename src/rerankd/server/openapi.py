"""What /docs says of bodies that the server reads itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Union

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rerankd.server.answer import Routed

SCHEMAS = "#/components/schemas/"


def json_body(bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body; `describe` puts the schemas it points to in the document."""
    kinds = [{"$ref": SCHEMAS + body.__name__} for body in bodies]
    schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, bodies: Iterable[type[BaseModel]]) -> None:
    """Have an app's OpenAPI document hold the schemas of `bodies`."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, extra = models_json_schema([(body, "validation") for body in bodies], ref_template=SCHEMAS + "{model}")
            generate()["components"]["schemas"].update(extra["$defs"])
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def responses(routed: Sequence[Routed]) -> dict[int | str, dict[str, Any]]:
    """What a route that may mean any of `routed` answers with, for FastAPI."""
    headers = {
        "X-Rerankd-Ignored": {"description": "fields that have no effect here", "schema": {"type": "string"}},
        "X-Rerankd-Truncated": {"description": "what was cut to fit", "schema": {"type": "string"}},
        "X-Rerankd-Failed": {"description": "documents that were left out, and why", "schema": {"type": "string"}},
    }
    described: dict[int | str, dict[str, Any]] = {200: {"description": routed[0][1].summary, "headers": headers}}
    replies = [endpoint.reply for _, endpoint in routed if endpoint.reply is not None]
    if replies:
        described[200]["model"] = Union[tuple(replies)]  # noqa: UP007 - made at run time
    for status in sorted({status for dialect, _ in routed for status in dialect.errors}):
        having = [dialect for dialect, _ in routed if status in dialect.errors]
        described[status] = {
            "model": Union[tuple(dialect.error for dialect in having)],  # noqa: UP007
            "description": having[0].errors[status],
        }
    return described
