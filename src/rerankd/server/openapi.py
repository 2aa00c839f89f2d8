"""The part of the OpenAPI document for bodies that FastAPI does not read, with examples that the server answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, Union

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rerankd.core import RerankRequest, RerankResult, ScoredDocument, TextToken
from rerankd.server.access import UNAUTHORIZED
from rerankd.server.answer import Routed
from rerankd.server.dialects.base import Dialect, Endpoint, Served
from rerankd.server.places import OVERLOADED
from rerankd.server.problems import SHUTTING_DOWN, Problem

Examples: TypeAlias = dict[int, dict[str, object]]
"""Examples of answers, by status and title."""

SCHEMAS = "#/components/schemas/"
TEXT = {"type": "string"}
OF_EVERY_ANSWER = {
    "X-Request-Id": {"description": "the call's id: its own `X-Request-Id`, or one that it was given", "schema": TEXT}
}
OF_AN_ANSWER = {
    "X-Rerankd-Ignored": {"description": "fields that have no effect here, or less than was asked", "schema": TEXT},
    "X-Rerankd-Truncated": {"description": "what was cut to fit", "schema": TEXT},
    "X-Rerankd-Failed": {"description": "documents that were left out, and why", "schema": TEXT},
    "X-Rerankd-Below-Min-Score": {"description": "documents that were left out for their scores", "schema": TEXT},
    "X-Rerankd-Windows": {"description": "prompts of a listwise model, where there are several", "schema": TEXT},
    "Server-Timing": {"description": "milliseconds of each stage, added up over queries and batches", "schema": TEXT},
}
OF_A_STATUS = {
    401: {"WWW-Authenticate": {"description": "`Bearer`", "schema": TEXT}},
    429: {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}},
    503: {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}},
}
PROBLEMS = (
    Problem(400, "is required.", "query"),
    Problem(400, "is 9000 tokens long, the limit is 8192.", "documents[1]", well_formed=True),
    UNAUTHORIZED,
    Problem(404, "The model `other` does not exist.", "model"),
    Problem(408, "The body did not arrive within 60 seconds."),
    Problem(413, "The body is larger than the 67108864 bytes that this server takes."),
    Problem(415, "The Content-Type must be application/json; this request's is 'text/plain'."),
    Problem(429, OVERLOADED),
    Problem(500, "The model failed on this request."),
    SHUTTING_DOWN,
    Problem(504, "There was no answer within 60 seconds."),
)
NO_KEY: Mapping[str, Any] = {"security": []}
MODEL_PARAMETER: Mapping[str, Any] = {
    "parameters": [
        {
            "name": "model",
            "in": "path",
            "required": True,
            "description": "the name of the model, as in /v1/models",
            "schema": {"type": "string", "minLength": 1},
        }
    ]
}


def json_body(routed: Sequence[Routed]) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body; `describe` puts the schemas it points to in the document."""
    kinds = [{"$ref": SCHEMAS + endpoint.body.__name__} for _, endpoint in routed]
    schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    examples = {
        f"{dialect.name}: {title}": {"value": body}
        for dialect, endpoint in routed
        for title, body in endpoint.examples.items()
        if dialect is next((other for other, _ in routed if other.claims(body, {})), routed[0][0])
    }
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": True, "content": content}}


def describe(
    app: FastAPI, bodies: Iterable[type[BaseModel]], examples: Mapping[tuple[str, str], Examples], locked: bool
) -> None:
    """Have an app's OpenAPI document hold the schemas of `bodies`, and say whether calls want a key.

    examples: examples of answers, by method and path
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _, extra = models_json_schema([(body, "validation") for body in bodies], ref_template=SCHEMAS + "{model}")
            document["components"]["schemas"].update(extra["$defs"])
            for (method, path), answers in examples.items():
                operation = document["paths"][path][method.lower()]
                for status, values in answers.items():
                    # Added here, since FastAPI would leave out null values.
                    operation["responses"][str(status)]["content"]["application/json"]["examples"] = {
                        title: {"value": value} for title, value in values.items()
                    }
            if locked:
                document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"key": []}]
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def responses(routed: Sequence[Routed]) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that has the endpoints `routed`, for FastAPI."""
    described: dict[int | str, dict[str, Any]] = {
        200: {"description": routed[0][1].summary, "headers": {**OF_EVERY_ANSWER, **OF_AN_ANSWER}}
    }
    replies = [endpoint.reply for _, endpoint in routed if endpoint.reply is not None]
    if replies:
        described[200]["model"] = Union[tuple(replies)]  # noqa: UP007 - made at run time
    for status in sorted({status for dialect, _ in routed for status in dialect.errors}):
        described[status] = refusal_of([dialect for dialect, _ in routed if status in dialect.errors], status)
    return described


def refusal_of(dialects: Sequence[Dialect], status: int) -> dict[str, Any]:
    """The error response of `dialects`, for FastAPI."""
    return {
        "model": Union[tuple(dialect.error for dialect in dialects)],  # noqa: UP007
        "description": dialects[0].errors[status],
        "headers": {**OF_EVERY_ANSWER, **OF_A_STATUS.get(status, {})},
    }


def answers(routed: Sequence[Routed], served: Served) -> Examples:
    """Examples of the answers of a route with the endpoints `routed`."""
    examples: Examples = {}
    for dialect, endpoint in routed:
        for title, answer in _answers(endpoint, served).items():
            examples.setdefault(200, {})[f"{dialect.name}: {title}"] = answer
        for status in dialect.errors:
            examples.setdefault(status, {})[dialect.name] = _refusal(dialect, status)
    return examples


def made_up_tokens(text: str, special: bool) -> list[TextToken]:
    """Tokens for an example, of a model that is not loaded."""
    return [TextToken(number, word) for number, word in enumerate(text.split(), start=1)]


def made_up_text(ids: Sequence[int], skip_special: bool) -> str:
    """Text for an example, of a model that is not loaded."""
    return " ".join(map(str, ids))


def _refusal(dialect: Dialect, status: int) -> object:
    problems = (*dialect.problems, *PROBLEMS)
    return dialect.render_error(next(problem for problem in problems if dialect.status(problem) == status))


def _answers(endpoint: Endpoint[Any], served: Served) -> dict[str, object]:
    """An endpoint's answers to its examples, with made-up scores."""
    rendered: dict[str, object] = {}
    if endpoint.reply is None:
        return rendered
    for title, body in endpoint.examples.items() if endpoint.reads else [("an answer", {})]:
        try:
            call = endpoint.parse(endpoint.body.model_validate({"model": served.names[0], **body}), served)
        except Problem:  # an example for models of another kind
            continue
        results = [_made_up(request) for request in call.requests]
        rendered[title] = endpoint.render(call, results, f"{endpoint.id_prefix}1f0c", served)
    return rendered


def _made_up(request: RerankRequest) -> RerankResult:
    count = len(request.documents)
    scores = [round(0.98 * ((index + 1) / count) ** 4, 4) for index in range(count)]
    if request.labels is not None:
        labels = len(request.labels.token_ids)
        shares = [(round(1 - score, 4), score) if labels == 2 else (score / labels,) * labels for score in scores]
        scored = [ScoredDocument(index, share[0], 12, labels=share) for index, share in enumerate(shares)]
        return RerankResult(tuple(scored), 12 * count, 12 * count, scored=count)
    if request.outputs is not None:
        with_values = [
            ScoredDocument(index, score, 12, values=(score, -0.5 * score)) for index, score in enumerate(scores)
        ]
        return RerankResult(tuple(with_values), 12 * count, 12 * count, scored=count)
    scored = [ScoredDocument(index, score, 12) for index, score in enumerate(scores)]
    return RerankResult(tuple(scored[::-1][: request.top_n]), 12 * count, 12 * count, scored=count)
