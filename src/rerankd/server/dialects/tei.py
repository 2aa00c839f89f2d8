"""Text Embeddings Inference's rerank API (https://huggingface.github.io/text-embeddings-inference, `/rerank`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from rerankd.core import RerankResult, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import ERRORS, Call, Dialect, Endpoint, Nothing, Served
from rerankd.server.dialects.labelled import id2label
from rerankd.server.dialects.ranking import ranking
from rerankd.server.dialects.tei_embed import EMBED
from rerankd.server.dialects.tei_predict import PREDICT
from rerankd.server.dialects.tei_texts import Empty, TeiCut
from rerankd.server.dialects.tei_tokens import TOKENS
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.dialects.vllm_embeddings import openai_embeddings
from rerankd.server.problems import Problem
from rerankd.version import __version__

ANY_NUMBER = (1 << 31) - 1
"""The value for a limit of TEI's that does not exist here."""


class TeiBody(Thresholded, TeiCut):
    """TEI's rerank request."""

    query: str = Field(description="the text to rank texts by.", examples=["what is panda?"])
    texts: DocumentList[str] = Field(
        description="the texts to rank.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    raw_scores: bool = Field(False, description="true for the model's logits in place of scores.")
    return_text: bool = Field(False, description="whether a rank has its text.")
    top_n: int | None = Field(
        None, ge=1, description="the most ranks, a field of llama.cpp's server; null for all.", examples=[None]
    )


class TeiRank(BaseModel):
    """One text's score; `text` is left out unless `return_text` is true."""

    index: int = Field(description="the text's index in the request")
    text: str | None = None
    score: float


class TeiError(BaseModel):
    """TEI's error body."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class TeiReranker(BaseModel):
    """The labels of a classifier."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class TeiModelType(BaseModel):
    """The kind of model."""

    reranker: TeiReranker


class TeiInfo(BaseModel):
    """The model and its limits. A limit that does not exist is 2147483647."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: TeiModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


def _parse(body: TeiBody, served: Served) -> Call[TeiBody]:
    if not body.texts:
        raise Empty("texts")
    return ranking(
        body,
        text_content(body.query),
        [text_content(text) for text in body.texts],
        body.top_n,
        words={"documents": "texts"},
        truncation=body.cut(),
        activation=not body.raw_scores,
        bounded=True,  # TEI takes the sigmoid of the one logit of every model, whatever the folder declares
    )


def _render(call: Call[TeiBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    ranks: list[dict[str, Any]] = []
    for document in result.documents:
        text = {"text": call.body.texts[document.index]} if call.body.return_text else {}
        ranks.append({"index": document.index, **text, "score": document.score})
    return ranks


def _info(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    info, labels = served.info, id2label(served.info)
    return {
        "model_id": info.model,
        "model_sha": None,
        "model_dtype": info.dtype,
        "served_model_name": served.names[0],
        "model_type": {"reranker": {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}},
        "max_concurrent_requests": served.max_calls or ANY_NUMBER,
        "max_input_length": info.max_model_len,
        "max_batch_tokens": ANY_NUMBER,
        "max_batch_requests": None,
        "max_client_batch_size": served.limits.documents,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }


def _status(problem: Problem) -> int:
    """TEI: 422 for what it cannot read or is too long, 424 for a model that fails or is of another kind."""
    if isinstance(problem, Empty):
        return 400
    if problem.field == "model" and problem.status == 400 and problem.well_formed:  # the model is of another kind
        return 424
    return {400: 422, 500: 424}.get(problem.status, problem.status)


_KINDS = {422: "Tokenizer", 424: "Backend", 429: "Overloaded", 503: "Unhealthy", 504: "Overloaded"}


def _render_error(problem: Problem) -> object:
    return {"error": str(problem), "error_type": _kind(problem)}


def _kind(problem: Problem) -> str:
    status = _status(problem)
    if isinstance(problem, Empty):
        return "Empty"
    # A request that can be read, and is too long or asks for too much.
    return "Validation" if problem.well_formed and status == 422 else _KINDS.get(status, "Validation")


TEI = Dialect(
    name="tei",
    endpoints=(
        Endpoint(
            paths=("/rerank", "/tei"),
            summary="Rank texts by their relevance to a query (TEI)",
            body=TeiBody,
            reply=list[TeiRank],
            parse=_parse,
            render=_render,
            examples={
                "texts": {"query": "what is panda?", "texts": ["hi", "The giant panda is a bear."]},
                "logits and texts": {
                    "query": "what is panda?",
                    "texts": ["hi", "The giant panda is a bear."],
                    "raw_scores": True,
                    "return_text": True,
                    "truncate": True,
                },
            },
        ),
        EMBED,
        openai_embeddings("TEI", "/tei/v1/embeddings", "/tei/embeddings"),
        PREDICT,
        *TOKENS,
        Endpoint(
            paths=("/info",),
            summary="The served model (TEI)",
            body=Nothing,
            reply=TeiInfo,
            parse=lambda body, served: Call(body, ()),
            render=_info,
            methods=("GET",),
        ),
    ),
    error=TeiError,
    render_error=_render_error,
    errors={
        **{status: ERRORS[status] for status in (401, 408, 413, 415, 429, 503, 504)},
        400: "no texts",
        422: "a missing or wrong field, a text too long where cutting is not allowed, or more than the server's limits",
        424: "a failure of the model or the server, or a model of another kind",
    },
    status=_status,
    problems=(Empty("texts"),),
    claims=lambda fields, headers: "texts" in fields or "inputs" in fields,
)
