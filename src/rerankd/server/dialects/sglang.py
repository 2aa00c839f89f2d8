"""SGLang's rerank API, as of SGLang 0.5.23 (`sglang/srt/entrypoints/openai/protocol.py`, `serving_rerank.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankResult
from rerankd.schemas.contents import AT_LEAST_ONE, ContentBody, from_content
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Served
from rerankd.server.dialects.chunks import MayCarryChunk
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.rerank import RerankBody
from rerankd.server.dialects.sglang_tools import HEALTH_GENERATE, MODEL_INFO, READY, SCORE, SERVER_INFO
from rerankd.server.problems import Problem


class SglangRerankBody(RerankBody):
    """SGLang's rerank request."""

    documents: DocumentList[ContentBody] = Field(
        description="the list of documents to rank: strings, or lists of content parts.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[["The giant panda is a bear.", "hi"]],
    )
    top_n: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])
    return_documents: bool = Field(True, description="whether a result has its document.")


class SglangMeta(BaseModel):
    """Facts about the scoring of one document."""

    id: str
    prompt_tokens: int = Field(description="tokens of the document's whole prompt, or of the prompts of its chunks")
    truncated: bool = Field(description="whether the document, or the query, was cut to fit")


class SglangResult(MayCarryChunk):
    """One document's score; `document` is left out where `return_documents` is false."""

    score: float
    document: str | list[dict[str, Any]] | None = None
    index: int = Field(description="the document's index in the request")
    meta_info: SglangMeta


class SglangError(BaseModel):
    """SGLang's error body."""

    object: str = "error"
    message: str
    type: str
    param: str | None
    code: int


def _parse(body: SglangRerankBody, served: Served) -> Call[SglangRerankBody]:
    _filled(body)
    # SGLang reads no model name: its own client says Qwen3-Reranker-0.6B to a server of Qwen/Qwen3-Reranker-0.6B.
    return body.call(body.documents, body.top_n, served, ignored_model(body.model, served))


def _filled(body: SglangRerankBody) -> None:
    """Raises Problem for no documents, and for an empty or blank text, as SGLang refuses them."""
    if not body.documents:
        raise Problem(400, "must hold at least one document.", "documents", well_formed=True)
    for index, text in enumerate((body.query, *body.documents)):
        if isinstance(text, str) and not text.strip():
            name = f"documents[{index - 1}]" if index else "query"
            raise Problem(400, "is empty, or blank; send a text.", name, well_formed=True)


def _render(call: Call[SglangRerankBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,), (request,) = results, call.requests
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        entry: dict[str, Any] = {"score": document.score}
        if call.body.return_documents:
            original = call.body.documents[document.index]
            entry["document"] = (
                original if isinstance(original, str) else from_content(request.documents[document.index])
            )
        entry["index"] = document.index
        entry["meta_info"] = {
            "id": id,
            "prompt_tokens": document.prompt_tokens,
            "truncated": document.truncated or result.query_truncated,
        }
        ranked.append(entry | call.body.best_chunk(document))
    return ranked


def _type(problem: Problem) -> str:
    """FastAPI refuses the body in SGLang, and names the phrase; SGLang itself refuses the request in it, or fails."""
    if problem.status == 400 and problem.well_formed:
        return "BadRequestError"
    return "InternalServerError" if problem.status == 500 else HTTPStatus(problem.status).phrase


def _render_error(problem: Problem) -> object:
    return {
        "object": "error",
        "message": str(problem),
        "type": _type(problem),
        "param": problem.field,
        "code": problem.status,
    }


SGLANG = Dialect(
    name="sglang",
    endpoints=(
        Endpoint(
            paths=("/v1/rerank", "/rerank"),
            methods=("POST", "PUT"),
            summary="Rank documents by their relevance to a query (SGLang)",
            body=SglangRerankBody,
            reply=list[SglangResult],
            parse=_parse,
            render=_render,
            examples={
                "a query and documents": {
                    "model": "bge-reranker-v2-m3",
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                },
                "the best one, without its text": {
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "top_n": 1,
                    "return_documents": False,
                    "instruct": "Retrieve passages that answer the question",
                },
            },
        ),
        SCORE,
        MODEL_INFO,
        SERVER_INFO,
        HEALTH_GENERATE,
        READY,
    ),
    error=SglangError,
    render_error=_render_error,
    claims=lambda fields, headers: bool(fields.keys() & {"label_token_ids", "item_first", "apply_softmax"}),
)
