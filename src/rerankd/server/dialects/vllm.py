"""vLLM's rerank API, as of vLLM 0.32 (`vllm/entrypoints/pooling/scoring/protocol.py`, `serving.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.core import RerankResult
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.dialects.contents import ContentBody, Message, by_type, from_content
from rerankd.server.dialects.rerank import RerankBody
from rerankd.server.problems import Problem

Documents: TypeAlias = Annotated[
    Annotated[list[ContentBody], Tag("<list>")]
    | Annotated[str, Tag("<string>")]
    | Annotated[Message, Tag("<message>")],
    Discriminator(
        by_type(list="list", string="str", message="dict"),
        custom_error_type="documents",
        custom_error_message="must be a list of documents, or one document",
    ),
]


class VllmRerankBody(RerankBody):
    """vLLM's rerank request."""

    documents: Documents = Field(
        description="the documents to rank: strings, lists of content parts, or objects with a `content` list.",
        examples=[["The giant panda is a bear.", "hi"]],
    )
    top_n: int | None = Field(None, ge=0, description="the most results; 0 or none for all of them.", examples=[0])
    return_documents: bool = Field(True, description="whether a result carries its document.")
    truncation_side: Literal["right"] | None = Field(
        None, description="`right`, the only side that a document is cut on.", examples=[None]
    )
    padding: Literal["max_length", "do_not_pad"] | None = Field(
        None, description="without effect: no padding is ever computed.", examples=[None]
    )
    priority: int = Field(0, description="without effect: requests are answered in the order they came.")
    mm_processor_kwargs: dict[str, Any] | None = Field(
        None, description="without effect: pixels and frames are limited by part, beside its `url`.", examples=[None]
    )
    cache_salt: str | None = Field(
        None, description="without effect: nothing is cached from one request to the next.", examples=[None]
    )


class VllmDocument(BaseModel):
    """A document as it was sent: its text, or its content parts."""

    text: str | None
    multi_modal: list[dict[str, Any]] | None


class VllmResult(BaseModel):
    """One document's score; `document` is left out where `return_documents` is false."""

    index: int = Field(description="the document's place in the request")
    document: VllmDocument | None = None
    relevance_score: float


class VllmUsage(BaseModel):
    """Tokens of every document's whole prompt."""

    prompt_tokens: int
    total_tokens: int


class VllmRerankReply(BaseModel):
    """The documents by falling score."""

    id: str
    model: str
    usage: VllmUsage
    results: list[VllmResult]


class VllmErrorInfo(BaseModel):
    """What went wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: int


class VllmError(BaseModel):
    """vLLM's error body."""

    error: VllmErrorInfo


def _documents(body: VllmRerankBody) -> list[ContentBody]:
    return body.documents if isinstance(body.documents, list) else [body.documents]


def _parse(body: VllmRerankBody, served: Served) -> Call[VllmRerankBody]:
    if body.model and body.model not in served.names:
        names = ", ".join(f"`{name}`" for name in served.names)
        raise Problem(404, f"The model `{body.model}` does not exist. This server has {names}.", "model")
    documents = _documents(body)
    ignored = [name for name in ("priority", "mm_processor_kwargs", "cache_salt") if getattr(body, name)]
    ignored += ["padding"] if body.padding == "max_length" else []
    return body.call(documents, body.top_n or None, served, ignored)


def _render(call: Call[VllmRerankBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,), (request,) = results, call.requests
    sent = _documents(call.body)
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        one: dict[str, Any] = {"index": document.index}
        if call.body.return_documents:
            given = sent[document.index]
            text = given if isinstance(given, str) else None
            parts = None if text is not None else from_content(request.documents[document.index])
            one["document"] = {"text": text, "multi_modal": parts}
        one["relevance_score"] = document.score
        ranked.append(one)
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    return {"id": id, "model": served.names[0], "usage": usage, "results": ranked}


_ERROR_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


def _render_error(problem: Problem) -> object:
    kind = _ERROR_TYPES.get(problem.status) or HTTPStatus(problem.status).phrase
    return {"error": {"message": str(problem), "type": kind, "param": problem.field, "code": problem.status}}


VLLM = Dialect(
    name="vllm",
    endpoints=(
        Endpoint(
            paths=("/rerank", "/v1/rerank"),
            summary="Rank documents by their relevance to a query (vLLM)",
            body=VllmRerankBody,
            reply=VllmRerankReply,
            parse=_parse,
            render=_render,
        ),
    ),
    error=VllmError,
    render_error=_render_error,
)
