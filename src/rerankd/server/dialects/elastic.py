"""The endpoint that Elasticsearch's `hugging_face` rerank service calls.

Requests and answers are those of `HuggingFaceRerankRequestEntity` and `HuggingFaceRerankResponseEntity` of
elastic/elasticsearch (x-pack/plugin/inference), which are TEI's. The service's first versions wrote other names, which
are read and answered too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankResult, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.dialects.ranking import ranking
from rerankd.server.dialects.threshold import Thresholded


class ElasticQuery(Thresholded):
    """The fields of every version."""

    query: str = Field(description="the text to rank documents by.", examples=["what is panda?"])
    top_n: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])


class ElasticBody(ElasticQuery):
    """The service's request."""

    texts: DocumentList[str] = Field(
        description="the documents to rank: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    return_text: bool = Field(False, description="whether a result has its document.")


class ElasticOldBody(ElasticQuery):
    """The request of the service's first versions."""

    documents: DocumentList[str] = Field(
        description="the documents to rank: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    return_documents: bool = Field(False, description="whether a result has its document.")


class ElasticResult(BaseModel):
    """One document's score; `text` is left out unless `return_text` is true."""

    index: int = Field(description="the document's index in the request")
    score: float
    text: str | None = None


class ElasticOldResult(BaseModel):
    """One document's score; `text` is left out unless `return_documents` is true."""

    index: int = Field(description="the document's index in the request")
    relevance_score: float
    text: str | None = None


class ElasticError(BaseModel):
    """The error body of Hugging Face's endpoints, from which the service takes `error`."""

    error: str


def _parse(body: ElasticBody, served: Served) -> Call[ElasticBody]:
    texts = [text_content(text) for text in body.texts]
    # As in TEI, which the service calls.
    return ranking(body, text_content(body.query), texts, body.top_n, words={"documents": "texts"}, bounded=True)


def _parse_old(body: ElasticOldBody, served: Served) -> Call[ElasticOldBody]:
    documents = [text_content(document) for document in body.documents]
    return ranking(body, text_content(body.query), documents, body.top_n)


def _render(call: Call[ElasticBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    return _ranked(results, "score", call.body.texts if call.body.return_text else None)


def _render_old(call: Call[ElasticOldBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    return _ranked(results, "relevance_score", call.body.documents if call.body.return_documents else None)


def _ranked(results: Sequence[RerankResult], score: str, texts: Sequence[str] | None) -> list[dict[str, Any]]:
    (result,) = results
    return [
        {"index": document.index, score: document.score, **({} if texts is None else {"text": texts[document.index]})}
        for document in result.documents
    ]


ELASTIC = Dialect(
    name="elastic",
    endpoints=(
        Endpoint(
            paths=("/rerank",),
            summary="Rank documents by their relevance to a query (Elasticsearch's hugging_face service)",
            body=ElasticBody,
            reply=list[ElasticResult],
            parse=_parse,
            render=_render,
            examples={
                "a query and documents": {
                    "query": "what is panda?",
                    "texts": ["hi", "The giant panda is a bear."],
                    "top_n": 1,
                    "return_text": True,
                },
            },
        ),
        Endpoint(
            paths=("/rerank",),
            summary="Rank documents by their relevance to a query (the first versions of Elasticsearch's service)",
            body=ElasticOldBody,
            reply=list[ElasticOldResult],
            parse=_parse_old,
            render=_render_old,
            claims=lambda fields, served: "documents" in fields and "texts" not in fields,
            examples={
                "the names of the first versions": {
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "top_n": 1,
                    "return_documents": True,
                },
            },
        ),
    ),
    error=ElasticError,
    render_error=lambda problem: {"error": str(problem)},
    # At the root, TEI claims the same field before, except where this is the server's own dialect.
    claims=lambda fields, headers: "texts" in fields,
)
