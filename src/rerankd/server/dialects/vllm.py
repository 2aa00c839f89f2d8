"""vLLM's rerank API, as of vLLM 0.32 (`vllm/entrypoints/pooling/scoring/protocol.py`, `serving.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankResult
from rerankd.schemas.contents import AT_LEAST_ONE, from_content
from rerankd.server.dialects.base import ERRORS, Call, Dialect, Endpoint, Served
from rerankd.server.dialects.chunks import MayCarryChunk
from rerankd.server.dialects.names import only_ours
from rerankd.server.dialects.rerank import RerankBody
from rerankd.server.dialects.vllm_classify import CLASSIFY
from rerankd.server.dialects.vllm_common import Activated, Documents, VllmOptions, VllmUsage, as_list, no_use_for
from rerankd.server.dialects.vllm_embeddings import EMBEDDINGS
from rerankd.server.dialects.vllm_score import SCORE, TEXTS
from rerankd.server.dialects.vllm_tools import LOAD, PING, TOKENIZE, VERSION
from rerankd.server.problems import Problem


class VllmRerankBody(Activated, RerankBody, VllmOptions):
    """vLLM's rerank request."""

    documents: Documents = Field(
        description="the documents to rank: strings, lists of content parts, or objects with a `content` list.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[["The giant panda is a bear.", "hi"]],
    )
    top_n: int | None = Field(None, ge=0, description="the most results; 0 or null for all.", examples=[0])
    return_documents: bool = Field(True, description="whether a result has its document.")


class VllmDocument(BaseModel):
    """A document as it was sent: its text, or its content parts."""

    text: str | None
    multi_modal: list[dict[str, Any]] | None


class VllmResult(MayCarryChunk):
    """One document's score; `document` is left out where `return_documents` is false."""

    index: int = Field(description="the document's index in the request")
    document: VllmDocument | None = None
    relevance_score: float


class VllmFailed(BaseModel):
    """A document that was left out, and why."""

    index: int
    param: str = Field(description="the document, or the part of it, with the error")
    message: str


class VllmRerankReply(BaseModel):
    """The documents by falling score. `failed` is there where `on_error` is `skip` and something was left out."""

    id: str
    model: str
    usage: VllmUsage
    results: list[VllmResult]
    failed: list[VllmFailed] | None = None


class VllmErrorInfo(BaseModel):
    """The problem, and the field that it is about."""

    message: str
    type: str
    param: str | None
    code: int


class VllmError(BaseModel):
    """vLLM's error body."""

    error: VllmErrorInfo


def _parse(body: VllmRerankBody, served: Served) -> Call[VllmRerankBody]:
    only_ours(body.model, served)
    return body.call(as_list(body.documents), body.top_n or None, served, no_use_for(body))


def _render(call: Call[VllmRerankBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,), (request,) = results, call.requests
    originals = as_list(call.body.documents)
    ranked: list[dict[str, Any]] = []
    for document in result.documents:
        entry: dict[str, Any] = {"index": document.index}
        if call.body.return_documents:
            original = originals[document.index]
            text = original if isinstance(original, str) else None
            parts = None if text is not None else from_content(request.documents[document.index])
            entry["document"] = {"text": text, "multi_modal": parts}
        entry["relevance_score"] = document.score
        entry |= call.body.best_chunk(document)
        ranked.append(entry)
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    answer: dict[str, Any] = {"id": id, "model": served.names[0], "usage": usage, "results": ranked}
    if result.failed:
        answer["failed"] = [
            {"index": index, "param": call.word(error.field), "message": error.problem}
            for index, error in sorted(result.failed.items())
        ]
    return answer


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
            paths=("/rerank", "/v1/rerank", "/v2/rerank", "/invocations"),
            summary="Rank documents by their relevance to a query (vLLM)",
            body=VllmRerankBody,
            reply=VllmRerankReply,
            parse=_parse,
            render=_render,
            examples={
                "a query and documents": {
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                },
                "the best one, by an instruction": {
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "instruction": "Retrieve passages that answer the question",
                    "top_n": 1,
                    "truncate_prompt_tokens": -1,
                },
                "content parts": {
                    "query": "what is panda?",
                    "documents": {"content": [{"type": "text", "text": "The giant panda is a bear."}]},
                    "return_documents": False,
                },
            },
        ),
        SCORE,
        EMBEDDINGS,
        CLASSIFY,
        TOKENIZE,
        VERSION,
        PING,
        LOAD,
    ),
    error=VllmError,
    render_error=_render_error,
    errors={**ERRORS, 404: "no model of that name"},
    claims=lambda fields, headers: bool(fields.keys() & TEXTS),
)
