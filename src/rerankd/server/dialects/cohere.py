"""Cohere's rerank API, v1 and v2 (https://docs.cohere.com/reference/rerank and /v1/reference/rerank)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.core import RerankResult, Truncation, text_content
from rerankd.schemas.contents import AT_LEAST_ONE, by_type
from rerankd.schemas.lists import DocumentList, FieldList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.dialects.chunks import CHUNKING_WORDS, Chunked, MayCarryChunk
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.ranking import ranking
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.problems import Problem

DOCUMENTS_OF_A_SEARCH_UNIT = 100
CohereDocument: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[dict[str, Any], Tag("<object>")],
    Discriminator(
        by_type(string="str", object="dict"),
        custom_error_type="document",
        custom_error_message="must be a string or an object of fields",
    ),
]


class CohereBody(Chunked, Thresholded):
    """Fields of both versions."""

    model: str | None = Field(None, description="the name of a model; a name other than the served model's is ignored.")
    query: str = Field(description="the text to rank documents by.", examples=["what is panda?"])
    top_n: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])
    return_documents: bool = Field(False, description="whether a result has its document.")
    max_tokens_per_doc: int | None = Field(
        None, ge=1, description="the most tokens of a document; null for the model's own limit.", examples=[None]
    )


class CohereV1Body(CohereBody):
    """Cohere's rerank request, v1."""

    documents: DocumentList[CohereDocument] = Field(
        description="the documents to rank: texts, or objects of fields.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[[{"text": "The giant panda is a bear."}, "hi"]],
    )
    rank_fields: FieldList[str] | None = Field(
        None, description="the fields to read from objects, in this order; null for `text`.", examples=[["text"]]
    )


class CohereV2Body(CohereBody):
    """Cohere's rerank request, v2."""

    documents: DocumentList[str] = Field(
        description="the documents to rank: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    priority: int = Field(0, description="without effect: short requests are preferred, whatever their priority.")


class CohereResult(MayCarryChunk):
    """One document's score; `document` is left out unless `return_documents` is true."""

    index: int = Field(description="the document's index in the request")
    relevance_score: float
    document: dict[str, Any] | None = None


class CohereVersion(BaseModel):
    """Which version of the API answered."""

    version: str


class CohereUnits(BaseModel):
    """A search unit is a query with up to 100 documents."""

    search_units: int


class CohereMeta(BaseModel):
    """The units that Cohere would bill."""

    api_version: CohereVersion
    billed_units: CohereUnits


class CohereReply(BaseModel):
    """The documents by falling score."""

    id: str
    results: list[CohereResult]
    meta: CohereMeta


class CohereError(BaseModel):
    """Cohere's error body."""

    message: str


def _parse_v1(body: CohereV1Body, served: Served) -> Call[CohereV1Body]:
    texts = [_text(document, f"documents[{i}]", body.rank_fields) for i, document in enumerate(body.documents)]
    return _call(body, texts, served)


def _parse_v2(body: CohereV2Body, served: Served) -> Call[CohereV2Body]:
    return _call(body, body.documents, served, ["priority"] if body.priority else [])


def _call(body: Any, texts: Sequence[str], served: Served, ignored: Sequence[str] = ()) -> Call[Any]:
    return ranking(
        body,
        text_content(body.query),
        [text_content(text) for text in texts],
        body.top_n,
        ignored=[*ignored_model(body.model, served), *ignored],
        words={"truncation.max_tokens_per_doc": "max_tokens_per_doc", **CHUNKING_WORDS},
        truncation=Truncation(max_tokens_per_doc=body.max_tokens_per_doc),
        chunking=body.chunking(),
    )


def _text(document: CohereDocument, where: str, rank_fields: list[str] | None) -> str:
    """A document's text: one field as it is; of several, a line each, with its name."""
    if isinstance(document, str):
        return document
    fields = rank_fields or ["text"]
    values = {name: document[name] for name in fields if document.get(name) is not None}
    if not values:
        raise Problem(
            400, f"has none of the fields {', '.join(map(repr, fields))}; name others in `rank_fields`.", where
        )
    if len(fields) == 1:
        return str(values[fields[0]])
    return "\n".join(f"{name}: {value}" for name, value in values.items())


def _render(call: Call[Any], results: Sequence[RerankResult], id: str, version: str) -> object:
    (result,), (request,) = results, call.requests
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        entry: dict[str, Any] = {"index": document.index, "relevance_score": document.score}
        if call.body.return_documents:
            original = call.body.documents[document.index]
            entry["document"] = {"text": original} if isinstance(original, str) else original
        ranked.append(entry | call.body.best_chunk(document))
    units = -(-len(request.documents) // DOCUMENTS_OF_A_SEARCH_UNIT)
    meta = {"api_version": {"version": version}, "billed_units": {"search_units": units}}
    return {"id": id, "results": ranked, "meta": meta}


COHERE = Dialect(
    name="cohere",
    endpoints=(
        Endpoint(
            paths=("/v1/rerank",),
            summary="Rank documents by their relevance to a query (Cohere, v1)",
            body=CohereV1Body,
            reply=CohereReply,
            parse=_parse_v1,
            render=lambda call, results, id, served: _render(call, results, id, "1"),
            id_prefix="",
            examples={
                "fields of objects": {
                    "model": "rerank-english-v3.0",
                    "query": "what is panda?",
                    "documents": [{"title": "hi", "text": "hello"}, {"title": "Panda", "text": "The panda is a bear."}],
                    "rank_fields": ["title", "text"],
                    "top_n": 1,
                    "return_documents": True,
                },
            },
        ),
        Endpoint(
            paths=("/v2/rerank",),
            summary="Rank documents by their relevance to a query (Cohere, v2)",
            body=CohereV2Body,
            reply=CohereReply,
            parse=_parse_v2,
            render=lambda call, results, id, served: _render(call, results, id, "2"),
            id_prefix="",
            examples={
                "a query and documents": {
                    "model": "rerank-v3.5",
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "top_n": 2,
                    "max_tokens_per_doc": 4096,
                },
            },
        ),
    ),
    error=CohereError,
    render_error=lambda problem: {"message": str(problem)},
    claims=lambda fields, headers: headers.get("x-fern-sdk-name") == "cohere" or "rank_fields" in fields,
)
