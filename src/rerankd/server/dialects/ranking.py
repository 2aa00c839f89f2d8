"""Shared by the rerank APIs of services: one query, documents, and errors as FastAPI writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from rerankd.core import Chunking, Content, RerankRequest, Truncation
from rerankd.server.dialects.base import ERRORS, Call
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.problems import Problem

Body = TypeVar("Body", bound=Thresholded)
VALIDATION_ERRORS: Mapping[int, str] = {
    **ERRORS,
    400: "a prompt too long where cutting is not allowed, an image that cannot be read, or more than the limits",
    422: "a missing or wrong field",
}


class TokensUsed(BaseModel):
    """Tokens of every document's whole prompt."""

    total_tokens: int


class ValidationDetail(BaseModel):
    """A field, and what is wrong with it."""

    loc: list[str | int]
    msg: str
    type: str


def ranking(
    body: Body,
    query: Content,
    documents: Sequence[Content],
    top_n: int | None,
    *,
    ignored: Iterable[str] = (),
    words: Mapping[str, str] = {},
    truncation: Truncation = Truncation(),  # noqa: B008 - frozen
    activation: bool = True,
    chunking: Chunking | None = None,
    bounded: bool = False,
) -> Call[Body]:
    """The call of one request. `words` are the body's words for `documents` and `top_n`, where they differ.

    Raises Problem for no documents.
    """
    if not documents:
        raise Problem(400, "must hold at least one document.", words.get("documents", "documents"))
    request = RerankRequest(
        query,
        tuple(documents),
        top_n=min(top_n, len(documents)) if top_n else None,
        truncation=truncation,
        activation=activation,
        chunking=chunking,
        min_score=body.lowest(),
        bounded=bounded,
    )
    return Call(body, (request,), (*ignored, *body.unknown()), fields=words)


def validation_status(problem: Problem) -> int:
    """422 for a body that is not as it should be, as FastAPI has it."""
    return 422 if problem.status == 400 and not problem.well_formed else problem.status


def validation_detail(problem: Problem) -> list[dict[str, Any]]:
    """FastAPI's `detail` of a 422."""
    return [{"loc": ["body", *([problem.field] if problem.field else [])], "msg": str(problem), "type": "value_error"}]
