"""What /docs says of bodies that the server reads itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

SCHEMAS = "#/components/schemas/"


def json_body(body: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body; `describe` puts the schema it points to in the document."""
    schema = {"$ref": SCHEMAS + body.__name__}
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
