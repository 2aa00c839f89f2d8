"""NVIDIA NIM's ranking API (https://docs.nvidia.com/nim/nemo-retriever/text-reranking/latest/using-reranking.html).

A NIM refuses a passage that does not fit unless a call says otherwise. NVIDIA's hosted API, which has the longer path,
cuts it (https://docs.api.nvidia.com/nim/reference/nvidia-llama-nemotron-rerank-vl-1b-v2-infer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from rerankd.core import Content, Image, RerankResult, Text, Truncation
from rerankd.schemas.contents import AT_LEAST_ONE, Open
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Nothing, Served
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.probes import live, ready
from rerankd.server.dialects.ranking import ranking
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.problems import Problem

TRUNCATE = "`END` cuts the end of a passage that does not fit (the answer reports it), `NONE` refuses it."


class NvidiaQuery(Open):
    """The text to rank passages by."""

    text: str = Field(description="the text to rank passages by.", examples=["what is panda?"])


class NvidiaPassage(Open):
    """A text, an image, or both."""

    text: str | None = Field(None, description="the passage's text.", examples=["The giant panda is a bear."])
    image: str | None = Field(
        None, description="a `data:` or http(s) URL of an image, for models that read images.", examples=[None]
    )

    def content(self, place: int) -> Content:
        """Raises Problem for a passage of nothing."""
        parts = [Image(self.image)] if self.image is not None else []
        if self.text is not None:
            return (*parts, Text(self.text))
        if not parts:
            raise Problem(400, "must have `text`, `image`, or both.", f"passages[{place}]")
        return tuple(parts)


class NvidiaBody(Thresholded):
    """NIM's ranking request."""

    model: str | None = Field(None, description="the name of a model; a name other than the served model's is ignored.")
    query: NvidiaQuery = Field(description="an object with the text to rank passages by.")
    passages: DocumentList[NvidiaPassage] = Field(
        description="the passages to rank.",
        examples=[[{"text": "The giant panda is a bear."}, {"text": "hi"}]],
        json_schema_extra=AT_LEAST_ONE,
    )
    truncate: Literal["NONE", "END"] = Field("NONE", description=TRUNCATE)
    top_k: int | None = Field(
        None, ge=1, description="the most rankings, a field of the hosted API; null for all.", examples=[None]
    )


class NvidiaHostedBody(NvidiaBody):
    """The ranking request of NVIDIA's hosted API."""

    truncate: Literal["NONE", "END"] = Field("END", description=TRUNCATE)


class NvidiaRanking(BaseModel):
    """One passage's logit: the model's score before a sigmoid."""

    index: int = Field(description="the passage's index in the request")
    logit: float


class NvidiaUsage(BaseModel):
    """Tokens of every passage's whole prompt."""

    prompt_tokens: int
    total_tokens: int


class NvidiaReply(BaseModel):
    """The passages by falling logit."""

    rankings: list[NvidiaRanking]
    usage: NvidiaUsage


class NvidiaHealth(BaseModel):
    """The server is well."""

    object: Literal["health.response"] = "health.response"
    message: str
    status: Literal["live", "ready"]


class NvidiaError(BaseModel):
    """NIM's error body."""

    object: Literal["error"] = "error"
    message: str
    detail: dict[str, Any]
    type: str


def _parse(body: NvidiaBody, served: Served) -> Call[NvidiaBody]:
    return ranking(
        body,
        (Text(body.query.text),),
        [passage.content(place) for place, passage in enumerate(body.passages)],
        body.top_k,
        ignored=ignored_model(body.model, served),
        words={"documents": "passages", "top_n": "top_k", "truncation.allowed": '`"truncate": "END"`'},
        truncation=Truncation(allowed=body.truncate == "END"),
        activation=False,
    )


def _render(call: Call[NvidiaBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    return {
        "rankings": [{"index": document.index, "logit": document.score} for document in result.documents],
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }


def _render_error(problem: Problem) -> object:
    kind = "invalid_request_error" if problem.status < 500 else "internal_server_error"
    detail = {"loc": ["body", problem.field]} if problem.field else {}
    return {"object": "error", "message": str(problem), "detail": detail, "type": kind}


def _ranking(paths: tuple[str, ...], body: type[NvidiaBody], api: str) -> Endpoint[NvidiaBody]:
    return Endpoint(
        paths=paths,
        summary=f"Rank passages by their relevance to a query ({api})",
        body=body,
        reply=NvidiaReply,
        parse=_parse,
        render=_render,
        examples={
            "a query and passages": {
                "model": "nvidia/llama-nemotron-rerank-1b-v2",
                "query": {"text": "what is panda?"},
                "passages": [{"text": "hi"}, {"text": "The giant panda is a bear."}],
                "truncate": "END",
            },
        },
    )


def _health(status: Literal["live", "ready"], summary: str, parse: Any) -> Endpoint[Nothing]:
    answer = {"object": "health.response", "message": f"Service is {status}.", "status": status}
    return Endpoint(
        paths=(f"/v1/health/{status}",),
        summary=f"{summary} (NVIDIA NIM)",
        body=Nothing,
        reply=NvidiaHealth,
        parse=parse,
        render=lambda call, results, id, served: answer,
        methods=("GET",),
        probe=True,
    )


NVIDIA = Dialect(
    name="nvidia",
    endpoints=(
        _ranking(("/v1/ranking", "/ranking"), NvidiaBody, "NVIDIA NIM"),
        _ranking(("/v1/retrieval/{model}/reranking",), NvidiaHostedBody, "NVIDIA's hosted API"),
        _health("live", "Whether the server works", live),
        _health("ready", "Whether calls are answered", ready),
    ),
    error=NvidiaError,
    render_error=_render_error,
)
