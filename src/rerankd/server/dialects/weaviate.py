"""The API of the container behind Weaviate's `reranker-transformers` module.

Requests and answers are those of weaviate/weaviate (`modules/reranker-transformers/clients/ranker.go`) and of
weaviate/reranker-transformers (`app.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankResult, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.lists import DocumentList
from rerankd.server.dialects.base import Call, Dialect, Endpoint, Nothing, Served
from rerankd.server.dialects.probes import live, ready
from rerankd.server.dialects.ranking import ranking
from rerankd.server.dialects.threshold import Thresholded


class WeaviateBody(Thresholded):
    """The module's request."""

    query: str = Field(description="the text to score documents by.", examples=["what is panda?"])
    documents: DocumentList[str] = Field(
        description="the documents to score: texts.",
        examples=[["The giant panda is a bear.", "hi"]],
        json_schema_extra=AT_LEAST_ONE,
    )
    property: str = Field("", description="Weaviate's module sends it empty; the answer repeats it.")


class WeaviateScore(BaseModel):
    """One document's score."""

    document: str
    score: float


class WeaviateReply(BaseModel):
    """The documents with their scores, in the order of the request."""

    query: str
    scores: list[WeaviateScore]
    property: str


class WeaviateError(BaseModel):
    """The container's error body."""

    error: str


class WeaviateMeta(BaseModel):
    """What is served."""

    model_path: str
    model_type: str


def _parse(body: WeaviateBody, served: Served) -> Call[WeaviateBody]:
    return ranking(body, text_content(body.query), [text_content(text) for text in body.documents], None)


def _render(call: Call[WeaviateBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    return {
        "query": call.body.query,
        "scores": [
            {"document": call.body.documents[document.index], "score": document.score}
            for document in sorted(result.documents, key=lambda document: document.index)
        ],
        "property": call.body.property,
    }


def _meta(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    return {"model_path": served.names[0], "model_type": served.info.architecture}


def _health(name: str, summary: str, parse: Callable[[Nothing, Served], Call[Nothing]]) -> Endpoint[Nothing]:
    return Endpoint(
        paths=(f"/.well-known/{name}",),
        summary=f"{summary} (Weaviate)",
        body=Nothing,
        reply=None,
        parse=parse,
        render=lambda call, results, id, served: None,
        methods=("GET",),
        probe=True,
    )


WEAVIATE = Dialect(
    name="weaviate",
    endpoints=(
        Endpoint(
            paths=("/rerank",),
            summary="Score documents for a query (Weaviate's reranker-transformers module)",
            body=WeaviateBody,
            reply=WeaviateReply,
            parse=_parse,
            render=_render,
            examples={
                "a query and documents": {
                    "query": "what is panda?",
                    "documents": ["hi", "The giant panda is a bear."],
                    "property": "",
                },
            },
        ),
        Endpoint(
            paths=("/meta",),
            summary="The served model (Weaviate)",
            body=Nothing,
            reply=WeaviateMeta,
            parse=lambda body, served: Call(body, ()),
            render=_meta,
            methods=("GET",),
        ),
        _health("live", "Whether the server works", live),
        _health("ready", "Whether calls are answered", ready),
    ),
    error=WeaviateError,
    render_error=lambda problem: {"error": str(problem)},
    claims=lambda fields, headers: "property" in fields,
)
