"""Infinity's rerank API (https://michaelfeil.github.io/infinity, `infinity_emb/fastapi_schemas/pymodels.py`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankResult, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Nothing, Served
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.ranking import (
    VALIDATION_ERRORS,
    ValidationDetail,
    ranking,
    validation_detail,
    validation_status,
)
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.dialects.vllm_embeddings import openai_embeddings
from rerankd.server.problems import Problem


class InfinityBody(Thresholded):
    """Infinity's rerank request."""

    model: str | None = Field(None, description="the name of a model; a name other than the served model's is ignored.")
    query: str = Field(description="the text to rank documents by.", examples=["what is panda?"])
    documents: DocumentList[str] = Field(
        description="the documents to rank: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    top_n: int | None = Field(None, ge=1, description="the most results; null for all.", examples=[None])
    raw_scores: bool = Field(False, description="true for the model's logits in place of scores.")
    return_documents: bool = Field(False, description="whether a result has its document.")


class InfinityResult(BaseModel):
    """One document's score; `document` is null unless `return_documents` is true."""

    relevance_score: float
    index: int = Field(description="the document's index in the request")
    document: str | None


class InfinityUsage(BaseModel):
    """Tokens of every document's whole prompt."""

    prompt_tokens: int
    total_tokens: int


class InfinityReply(BaseModel):
    """The documents by falling score."""

    object: str = "rerank"
    results: list[InfinityResult]
    model: str
    usage: InfinityUsage
    id: str
    created: int


class InfinityErrorInfo(BaseModel):
    """The problem."""

    message: str
    type: str
    param: str | None
    code: int


class InfinityError(BaseModel):
    """Infinity's error body."""

    error: InfinityErrorInfo


class InfinityValidationError(BaseModel):
    """Infinity's error body of a 422."""

    detail: list[ValidationDetail]


class InfinityStats(BaseModel):
    """How busy the server is."""

    queue_fraction: float
    queue_absolute: int
    results_pending: int
    batch_size: int


class InfinityModel(BaseModel):
    """A name that the model answers to."""

    id: str
    stats: InfinityStats
    object: str = "model"
    owned_by: str = "infinity"
    created: int
    backend: str
    capabilities: list[str]


class InfinityModels(BaseModel):
    """The names that the model answers to."""

    data: list[InfinityModel]
    object: str = "list"


def _parse(body: InfinityBody, served: Served) -> Call[InfinityBody]:
    return ranking(
        body,
        text_content(body.query),
        [text_content(document) for document in body.documents],
        body.top_n,
        ignored=ignored_model(body.model, served),
        activation=not body.raw_scores,
        bounded=True,  # Infinity takes the sigmoid of every model's logit, whatever the folder declares
    )


def _render(call: Call[InfinityBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    documents = call.body.documents if call.body.return_documents else [None] * len(call.body.documents)
    return {
        "object": "rerank",
        "results": [
            {"relevance_score": document.score, "index": document.index, "document": documents[document.index]}
            for document in result.documents
        ],
        "model": served.names[0],
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        "id": id,
        "created": int(time.time()),
    }


def _models(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    pending = served.running()
    stats = {"queue_fraction": 0.0, "queue_absolute": pending, "results_pending": pending, "batch_size": 1}
    now = int(time.time())
    kind = {"object": "model", "owned_by": "infinity", "backend": "torch", "capabilities": ["rerank"]}
    return {
        "data": [{"id": name, "stats": stats, "created": now, **kind} for name in served.all_names or served.names],
        "object": "list",
    }


def _render_error(problem: Problem) -> object:
    status = validation_status(problem)
    if status == 422:
        return {"detail": validation_detail(problem)}
    kind = HTTPStatus(status).phrase
    return {"error": {"message": str(problem), "type": kind, "param": problem.field, "code": status}}


INFINITY = Dialect(
    name="infinity",
    endpoints=(
        Endpoint(
            paths=("/rerank", "/v1/rerank"),
            summary="Rank documents by their relevance to a query (Infinity)",
            body=InfinityBody,
            reply=InfinityReply,
            parse=_parse,
            render=_render,
            id_prefix="infinity-",
            examples={
                "a query and documents": {
                    "model": "mixedbread-ai/mxbai-rerank-xsmall-v1",
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "raw_scores": False,
                    "return_documents": True,
                },
            },
        ),
        openai_embeddings("Infinity", "/infinity/embeddings"),
        Endpoint(
            paths=("/models",),
            summary="The names that the model answers to (Infinity)",
            body=Nothing,
            reply=InfinityModels,
            parse=lambda body, served: Call(body, ()),
            render=_models,
            methods=("GET",),
        ),
    ),
    error=InfinityError | InfinityValidationError,
    render_error=_render_error,
    errors=VALIDATION_ERRORS,
    status=validation_status,
    claims=lambda fields, headers: "raw_scores" in fields and "texts" not in fields,
)
