"""Jina's rerank API (https://api.jina.ai/redoc, `POST /v1/rerank`), images included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from rerankd.core import Content, Image, Part, RerankResult, Text, Truncation
from rerankd.schemas.contents import AT_LEAST_ONE, Open, by_type
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.dialects.chunks import CHUNKING_WORDS, Chunked, MayCarryChunk
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.ranking import (
    VALIDATION_ERRORS,
    TokensUsed,
    ValidationDetail,
    ranking,
    validation_detail,
    validation_status,
)
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.problems import Problem


class JinaObject(Open):
    """A text, an image, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [name], "properties": {name: {"type": "string"}}} for name in ("text", "image")]
        }
    )

    text: str | None = Field(None, description="the text.")
    image: str | None = Field(None, description="an http(s) or `data:` URL, or base64.")


JinaContent: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[JinaObject, Tag("<object>")],
    Discriminator(
        by_type(string="str", object="dict"),
        custom_error_type="content",
        custom_error_message="must be a string, or an object with `text` or `image`",
    ),
]


class JinaBody(Chunked, Thresholded):
    """Jina's rerank request."""

    model: str | None = Field(None, description="the name of a model; a name other than the served model's is ignored.")
    query: JinaContent = Field(
        description="the text to rank documents by, or an object with `text` or `image`.", examples=["what is panda?"]
    )
    documents: DocumentList[JinaContent] = Field(
        description="the documents to rank: texts, or objects with `text` or `image`.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[["hi", {"text": "The giant panda is a bear."}]],
    )
    top_n: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])
    return_documents: bool = Field(True, description="whether a result has its document.")
    truncation: bool = Field(
        True, description="whether texts that do not fit are cut (the answer reports cuts); false makes them an error."
    )


class JinaResult(MayCarryChunk):
    """One document's score; `document` is left out where `return_documents` is false."""

    index: int = Field(description="the document's index in the request")
    relevance_score: float
    document: dict[str, Any] | None = None


class JinaReply(BaseModel):
    """The documents by falling score."""

    model: str
    object: str = "list"
    usage: TokensUsed
    results: list[JinaResult]


class JinaError(BaseModel):
    """Jina's error body: the fields at fault for a 422, else a sentence."""

    detail: str | list[ValidationDetail]


def _parse(body: JinaBody, served: Served) -> Call[JinaBody]:
    unknown = [f"query.{name}" for name in body.query.unknown()] if isinstance(body.query, JinaObject) else []
    for index, document in enumerate(body.documents):
        if isinstance(document, JinaObject):
            unknown += [f"documents[{index}].{name}" for name in document.unknown()]
    return ranking(
        body,
        _content(body.query, "query"),
        [_content(document, f"documents[{i}]") for i, document in enumerate(body.documents)],
        body.top_n,
        ignored=[*ignored_model(body.model, served), *unknown],
        words=CHUNKING_WORDS,
        truncation=Truncation(allowed=body.truncation),
        chunking=body.chunking(),
    )


def _content(body: JinaContent, where: str) -> Content:
    if isinstance(body, str):
        return (Text(body),)
    parts: list[Part] = [] if body.image is None else [Image(_url(body.image))]
    parts += [] if body.text is None else [Text(body.text)]
    if not parts:
        raise Problem(400, "must have a `text` or an `image`.", where)
    return tuple(parts)


def _url(image: str) -> str:
    """Jina takes base64 without the `data:` before it; no base64 holds a colon."""
    return image if ":" in image[:16] else f"data:;base64,{image}"


def _render(call: Call[JinaBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        entry: dict[str, Any] = {"index": document.index, "relevance_score": document.score}
        if call.body.return_documents:
            original = call.body.documents[document.index]
            entry["document"] = (
                {"text": original} if isinstance(original, str) else original.model_dump(exclude_none=True)
            )
        ranked.append(entry | call.body.best_chunk(document))
    usage = {"total_tokens": result.prompt_tokens}
    return {"model": call.body.model or served.names[0], "object": "list", "usage": usage, "results": ranked}


def _render_error(problem: Problem) -> object:
    return {"detail": validation_detail(problem) if validation_status(problem) == 422 else str(problem)}


def _claims(fields: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    documents = fields.get("documents")
    return any(
        isinstance(content, dict)
        and not content.keys() & {"content", "type"}
        and bool(content.keys() & {"text", "image"})
        for content in (fields.get("query"), *(documents if isinstance(documents, list) else ()))
    )


JINA = Dialect(
    name="jina",
    endpoints=(
        Endpoint(
            paths=("/v1/rerank", "/rerank"),
            summary="Rank documents by their relevance to a query (Jina)",
            body=JinaBody,
            reply=JinaReply,
            parse=_parse,
            render=_render,
            examples={
                "texts": {
                    "model": "jina-reranker-v2-base-multilingual",
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "top_n": 2,
                },
                "objects": {
                    "model": "jina-reranker-m0",
                    "query": {"text": "what is panda?"},
                    "documents": [{"text": "hi"}, {"text": "The giant panda is a bear."}],
                    "return_documents": False,
                },
            },
        ),
    ),
    error=JinaError,
    render_error=_render_error,
    errors=VALIDATION_ERRORS,
    status=validation_status,
    claims=_claims,
)
