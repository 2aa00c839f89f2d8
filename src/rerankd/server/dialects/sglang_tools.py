"""SGLang's other routes: `/v1/score` for decoders that answer yes or no, and what the server says of its model.

As of SGLang 0.5.23 (`sglang/srt/entrypoints/openai/protocol.py`, `serving_score.py`, `http_server.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from rerankd.core import RerankRequest, RerankResult, text_content
from rerankd.server.dialects.base import Call, Endpoint, Nothing, Served
from rerankd.server.dialects.contents import Open
from rerankd.server.dialects.names import ignored_model
from rerankd.server.problems import Problem


class SglangScoreBody(Open):
    """SGLang's scoring request: how probable each label is as the next token."""

    model: str | None = Field(None, description="the name of the model; another's is ignored.", examples=[None])
    query: str = Field(description="the query's text.", examples=["what is panda?"])
    items: str | list[str] = Field(description="the items to score: texts.", examples=[["The giant panda is a bear."]])
    label_token_ids: list[int] | None = Field(
        None, description="token ids of the model's two answers, no and yes, or one of them, in any order."
    )
    apply_softmax: bool = Field(
        False, description="true for probabilities among the two answers; others are not computed."
    )
    item_first: bool = Field(False, description="without effect: the model's own prompt says what comes first.")


class SglangUsage(BaseModel):
    """Tokens of every item's whole prompt."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class SglangScoreReply(BaseModel):
    """For each item in the order of the request, the probability of each label."""

    scores: list[list[float]]
    model: str
    usage: SglangUsage
    object: str = "scoring"


class SglangModelInfo(BaseModel):
    """What is served."""

    model_path: str
    tokenizer_path: str
    is_generation: bool
    preferred_sampling_params: str | None
    model_type: str
    architectures: list[str]
    has_image_understanding: bool


def _parse(body: SglangScoreBody, served: Served) -> Call[SglangScoreBody]:
    items = [body.items] if isinstance(body.items, str) else body.items
    if not items:
        raise Problem(400, "must hold at least one item.", "items")
    answers = served.info.label_token_ids
    if answers is None:
        raise Problem(400, "this model has no labels among its tokens: it is no decoder; use /v1/rerank.", "model")
    labels = body.label_token_ids
    if not labels or not set(labels) <= set(answers):
        no, yes = answers
        raise Problem(
            400,
            f"must be among [{no}, {yes}], this model's tokens for no and yes, not {labels}; no other logits are "
            "computed.",
            "label_token_ids",
        )
    if not body.apply_softmax:
        raise Problem(
            400,
            "must be true: only probabilities among no and yes are computed.",
            "apply_softmax",
        )
    if len(set(labels)) < 2:
        raise Problem(400, f"must hold both of {list(answers)}.", "label_token_ids")
    request = RerankRequest(text_content(body.query), tuple(map(text_content, items)), activation=False)
    ignored = [*ignored_model(body.model, served), *body.unknown(), *(["item_first"] if body.item_first else [])]
    return Call(body, (request,), tuple(ignored), fields={"documents": "items"})


def _render(call: Call[SglangScoreBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    assert served.info.label_token_ids is not None
    yes = served.info.label_token_ids[1]
    scores = [
        [_sigmoid(document.score if label == yes else -document.score) for label in call.body.label_token_ids or ()]
        for document in result.in_request_order()
    ]
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens, "completion_tokens": 0}
    return {"scores": scores, "model": served.names[0], "usage": usage, "object": "scoring"}


def _sigmoid(logit: float) -> float:
    # The two forms keep exp() from overflowing.
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def _model_info(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    info = served.info
    return {
        "model_path": info.model,
        "tokenizer_path": info.model,
        "is_generation": False,
        "preferred_sampling_params": None,
        "model_type": info.family,
        "architectures": [info.architecture],
        "has_image_understanding": info.sees,
    }


SCORE = Endpoint(
    paths=("/v1/score",),
    summary="Probabilities of a yes/no decoder's answers (SGLang)",
    body=SglangScoreBody,
    reply=SglangScoreReply,
    parse=_parse,
    render=_render,
    examples={
        "Qwen3-Reranker's yes and no": {
            "query": "what is panda?",
            "items": ["hi", "The giant panda is a bear."],
            "label_token_ids": [9693, 2152],
            "apply_softmax": True,
        },
    },
)
MODEL_INFO = Endpoint(
    paths=("/get_model_info", "/model_info"),
    summary="What is served (SGLang)",
    body=Nothing,
    reply=SglangModelInfo,
    parse=lambda body, served: Call(body, ()),
    render=_model_info,
    method="GET",
)
HEALTH_GENERATE = Endpoint(
    paths=("/health_generate",),
    summary="200 once the model has scored a pair (SGLang)",
    body=Nothing,
    reply=None,
    parse=lambda body, served: Call(body, (RerankRequest(text_content("alive"), (text_content("yes"),)),)),
    render=lambda call, results, id, served: None,
    method="GET",
)
