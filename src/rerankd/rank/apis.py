"""The rerank APIs that `rank --server` calls: where a request's fields and an answer's scores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rerankd.core import Content, Image, InvalidRequest, Text
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
    # Jina's object has no order: its image comes before its text, here and in a server of rerankd.
    images = tuple(part for part in content if isinstance(part, Image))
    texts = tuple(part for part in content if isinstance(part, Text))
    if len(images) != 1 or (*images, *texts) != tuple(content):
        raise InvalidRequest(
            field,
            "must be texts alone, or one image and then texts, because the API of Jina has no more; use --api vllm",
        )
    if images[0].min_pixels is not None or images[0].max_pixels is not None:
        raise InvalidRequest(
            field,
            "limits the pixels of an image, for which the API of Jina has no field; leave out min_pixels and "
            "max_pixels, or use --api vllm",
        )
    (image,) = sendable(images, field)
    assert isinstance(image, Image)
    document: dict[str, Any] = {"image": image.source}
    return document | {"text": plain_text(texts, field)} if texts else document


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
