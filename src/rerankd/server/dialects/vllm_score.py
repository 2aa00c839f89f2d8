"""vLLM's score API: pairs of texts, 1:1, 1:N or N:N (vLLM 0.32, `vllm/entrypoints/pooling/scoring/protocol.py`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from rerankd.core import Content, RerankResult
from rerankd.schemas.contents import ContentBody, to_content, unknown_fields
from rerankd.server.dialects.base import Call, Endpoint, Served
from rerankd.server.dialects.chunks import MayCarryChunk
from rerankd.server.dialects.names import only_ours
from rerankd.server.dialects.rerank import ScoringBody
from rerankd.server.dialects.vllm_common import Activated, Documents, VllmOptions, VllmUsage, as_list, no_use_for
from rerankd.server.problems import Problem

FORMS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))
TEXTS = frozenset({"text_1", "text_2", "data_1", "data_2", "queries"})
"""Fields that no other body has."""


class VllmScoreBody(Activated, ScoringBody, VllmOptions):
    """vLLM's score request: one of the four pairs of fields, each one text (or content), or a list of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [*form], "properties": {name: {"not": {"type": "null"}} for name in form}}
                for form in FORMS
            ]
        }
    )

    text_1: Documents | None = Field(None, description="the queries, or one for all.", examples=["what is panda?"])
    text_2: Documents | None = Field(
        None, description="the texts to score against `text_1`.", examples=[["hi", "The giant panda is a bear."]]
    )
    data_1: Documents | None = Field(None, description="another name of `text_1`.", examples=[None])
    data_2: Documents | None = Field(None, description="another name of `text_2`.", examples=[None])
    queries: Documents | None = Field(None, description="another name of `text_1`.", examples=[None])
    documents: Documents | None = Field(None, description="another name of `text_2`.", examples=[None])
    items: Documents | None = Field(None, description="another name of `text_2`.", examples=[None])


class VllmScore(MayCarryChunk):
    """One pair's score."""

    index: int = Field(description="the pair's index in the request")
    object: str = "score"
    score: float


class VllmScoreReply(BaseModel):
    """The scores of the pairs, in the order of the request."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[VllmScore]
    usage: VllmUsage


def _parse(body: VllmScoreBody, served: Served) -> Call[VllmScoreBody]:
    only_ours(body.model, served)
    first, second = _form(body)
    left, right = as_list(getattr(body, first)), as_list(getattr(body, second))
    for name, texts in ((first, left), (second, right)):
        if not texts:
            raise Problem(400, "must hold at least one text.", name)
    if len(left) not in (1, len(right)):
        raise Problem(
            400,
            f"holds {len(left)} and `{second}` {len(right)}; give one, or as many as there.",
            first,
        )
    # Pairs of one query become one request, so that its tokens are computed once.
    places: dict[Content, list[int]] = {}
    queries = [to_content(query) for query in left]
    for index in range(len(right)):
        places.setdefault(queries[index if len(left) > 1 else 0], []).append(index)
    documents = [to_content(document) for document in right]
    requests = [body.request(query, [documents[i] for i in indices], served) for query, indices in places.items()]
    ignored = [*no_use_for(body), *body.without_effect(), *_unknown(left, first), *_unknown(right, second)]
    return Call(
        body,
        tuple(requests),
        tuple(ignored),
        body.request_id,
        {**body.words(), "query": first, "documents": second},
        tuple(map(tuple, places.values())),
    )


def _form(body: VllmScoreBody) -> tuple[str, str]:
    """The one pair of fields that is given. Raises Problem for none, and for more than one."""
    given_fields = {name for form in FORMS for name in form if getattr(body, name) is not None}
    for form in FORMS:
        if given_fields == set(form):
            return form
    if not given_fields:
        raise Problem(400, "is required, with `text_2`. They are the texts to score, each one or a list.", "text_1")
    if len(given_fields) == 1:
        (name,) = given_fields
        other = next(b if name == a else a for a, b in FORMS if name in (a, b))
        raise Problem(400, f"is required beside `{name}`.", other)
    forms = "; ".join(f"`{first}` and `{second}`" for first, second in FORMS)
    raise Problem(400, f"does not go with the other texts; give one of: {forms}.", sorted(given_fields)[-1])


def _unknown(contents: Sequence[ContentBody], name: str) -> list[str]:
    return [field for index, content in enumerate(contents) for field in unknown_fields(content, f"{name}[{index}]")]


def _render(call: Call[VllmScoreBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    scored = {
        call.place(number, document.index): document
        for number, result in enumerate(results)
        for document in result.documents
    }
    tokens = sum(result.prompt_tokens for result in results)
    return {
        "id": id,
        "object": "list",
        "created": int(time.time()),
        "model": served.names[0],
        "data": [
            {"index": index, "object": "score", "score": document.score, **call.body.best_chunk(document)}
            for index, document in sorted(scored.items())
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


SCORE = Endpoint(
    paths=("/score", "/v1/score", "/invocations"),
    claims=lambda fields, served: "query" not in fields and bool(fields.keys() & TEXTS),
    summary="Score pairs of texts: one by one, or one against many (vLLM)",
    body=VllmScoreBody,
    reply=VllmScoreReply,
    parse=_parse,
    render=_render,
    id_prefix="score-",
    examples={
        "one against many": {"text_1": "what is panda?", "text_2": ["hi", "The giant panda is a bear."]},
        "pair by pair": {
            "queries": ["what is panda?", "what is a bear?"],
            "documents": ["hi", "A bear is a large animal."],
            "use_activation": False,
        },
    },
)
