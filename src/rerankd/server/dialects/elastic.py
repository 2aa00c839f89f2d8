"""The endpoint that Elasticsearch's `hugging_face` rerank service calls.

Requests and answers are those of `HuggingFaceRerankRequestEntity` and `HuggingFaceRerankResponseEntity` of
elastic/elasticsearch (x-pack/plugin/inference). An answer with any other key is an error to the service.
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


class ElasticBody(Thresholded):
    """The service's request."""

    query: str = Field(description="the text to rank documents by.", examples=["what is panda?"])
    documents: DocumentList[str] = Field(
        description="the documents to rank: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    top_n: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])
    return_documents: bool = Field(False, description="whether a result has its document.")


class ElasticResult(BaseModel):
    """One document's score; `text` is left out unless `return_documents` is true."""

    index: int = Field(description="the document's index in the request")
    relevance_score: float
    text: str | None = None


class ElasticError(BaseModel):
    """The error body of Hugging Face's endpoints, from which the service takes `error`."""

    error: str


def _parse(body: ElasticBody, served: Served) -> Call[ElasticBody]:
    documents = [text_content(document) for document in body.documents]
    return ranking(body, text_content(body.query), documents, body.top_n)


def _render(call: Call[ElasticBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        text = {"text": call.body.documents[document.index]} if call.body.return_documents else {}
        ranked.append({"index": document.index, "relevance_score": document.score, **text})
    return ranked


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
                    "documents": ["hi", "The giant panda is a bear."],
                    "top_n": 1,
                    "return_documents": True,
                },
            },
        ),
    ),
    error=ElasticError,
    render_error=lambda problem: {"error": str(problem)},
)
