"""The rerank APIs that `rank --server` calls: where a request's fields and an answer's scores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rerankd.core import Content, InvalidRequest
from rerankd.rank.values import is_text, parts, plain_text, sendable


@dataclass(frozen=True, slots=True)
class Api:
    """How to call a rerank API.

    path: the usual path of its route
    documents: name of the request's field for the documents
    content: converts a query or document to JSON; its second argument is the field that errors name
    results: takes the list of scored documents out of an answer
    score: name of the score in such a document
    instruction: name of the request's field for an instruction; None if the API has none
    fields: further fields of every request
    """

    path: str
    documents: str
    content: Callable[[Content, str], Any]
    results: Callable[[Any], Any]
    score: str
    instruction: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def _parts(content: Content, field: str) -> Any:
    return parts(sendable(content, field))


def _jina(content: Content, field: str) -> Any:
    if is_text(content):
        return plain_text(content, field)
    document: dict[str, Any] = {}
    for part in sendable(content, field):
        kind = {"Text": "text", "Image": "image"}.get(type(part).__name__)
        if kind is None or kind in document:
            raise InvalidRequest(field, "holds more than one text and one image, which the API of Jina does not accept")
        document[kind] = part.text if kind == "text" else part.source  # type: ignore[union-attr]
    return document


SCORES_ONLY: Mapping[str, Any] = {"return_documents": False}
APIS: Mapping[str, Api] = {
    "vllm": Api(
        "/v1/rerank", "documents", _parts, lambda answer: answer["results"], "relevance_score", "instruction",
        {**SCORES_ONLY, "truncate_prompt_tokens": -1},
    ),
    "sglang": Api("/v1/rerank", "documents", _parts, lambda answer: answer, "score", "instruct", SCORES_ONLY),
    "cohere": Api("/v2/rerank", "documents", plain_text, lambda answer: answer["results"], "relevance_score"),
    "tei": Api("/rerank", "texts", plain_text, lambda answer: answer, "score", None, {"truncate": True}),
    "infinity": Api(
        "/rerank", "documents", plain_text, lambda answer: answer["results"], "relevance_score", None, SCORES_ONLY,
    ),
    "voyage": Api(
        "/v1/rerank", "documents", plain_text, lambda answer: answer["data"], "relevance_score", None, SCORES_ONLY,
    ),
    "jina": Api(
        "/v1/rerank", "documents", _jina, lambda answer: answer["results"], "relevance_score", None, SCORES_ONLY,
    ),
}  # fmt: skip
