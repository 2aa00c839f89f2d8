"""Voyage's rerank API (https://docs.voyageai.com/reference/reranker-api)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankResult, Truncation, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.ranking import TokensUsed, ranking
from rerankd.server.dialects.threshold import Thresholded


class VoyageBody(Thresholded):
    """Voyage's rerank request."""

    model: str | None = Field(None, description="the name of a model; a name other than the served model's is ignored.")
    query: str = Field(description="the text to rank documents by.", examples=["what is panda?"])
    documents: DocumentList[str] = Field(
        description="the documents to rank: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    top_k: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])
    return_documents: bool = Field(False, description="whether a result has its document.")
    truncation: bool = Field(
        True, description="whether texts that do not fit are cut (the answer reports cuts); false makes them an error."
    )


class VoyageResult(BaseModel):
    """One document's score; `document` is left out unless `return_documents` is true."""

    relevance_score: float
    index: int = Field(description="the document's index in the request")
    document: str | None = None


class VoyageReply(BaseModel):
    """The documents by falling score."""

    object: str = "list"
    data: list[VoyageResult]
    model: str
    usage: TokensUsed


class VoyageError(BaseModel):
    """Voyage's error body."""

    detail: str


def _parse(body: VoyageBody, served: Served) -> Call[VoyageBody]:
    return ranking(
        body,
        text_content(body.query),
        [text_content(document) for document in body.documents],
        body.top_k,
        ignored=ignored_model(body.model, served),
        words={"top_n": "top_k"},
        truncation=Truncation(allowed=body.truncation),
    )


def _render(call: Call[VoyageBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        entry: dict[str, Any] = {"relevance_score": document.score, "index": document.index}
        if call.body.return_documents:
            entry["document"] = call.body.documents[document.index]
        ranked.append(entry)
    usage = {"total_tokens": result.prompt_tokens}
    return {"object": "list", "data": ranked, "model": call.body.model or served.names[0], "usage": usage}


VOYAGE = Dialect(
    name="voyage",
    endpoints=(
        Endpoint(
            paths=("/v1/rerank", "/rerank"),
            summary="Rank documents by their relevance to a query (Voyage)",
            body=VoyageBody,
            reply=VoyageReply,
            parse=_parse,
            render=_render,
            examples={
                "a query and documents": {
                    "model": "rerank-2.5",
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "top_k": 1,
                    "return_documents": True,
                },
            },
        ),
    ),
    error=VoyageError,
    render_error=lambda problem: {"detail": str(problem)},
    claims=lambda fields, headers: "top_k" in fields,
)
