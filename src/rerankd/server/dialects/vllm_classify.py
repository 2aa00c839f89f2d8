"""vLLM's `/classify` (vLLM 0.32, `vllm/entrypoints/pooling/classify/`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from rerankd.core import Logits, RerankResult
from rerankd.server.dialects.base import Call, Endpoint, Served
from rerankd.server.dialects.labelled import label_names, probabilities
from rerankd.server.dialects.vllm_common import Activated, VllmUsage
from rerankd.server.dialects.vllm_texts import VllmTexts


class VllmClassifyBody(Activated, VllmTexts):
    """vLLM's request for the labels of texts."""


class VllmClass(BaseModel):
    """The most probable label of one text, and how probable each is in the model's order."""

    index: int = Field(description="the text's index in the request")
    label: str
    probs: list[float]
    num_classes: int


class VllmClassifyReply(BaseModel):
    """The labels of the texts, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VllmClass]
    usage: VllmUsage


def _parse(body: VllmClassifyBody, served: Served) -> Call[VllmClassifyBody]:
    return body.call(Logits(), served)


def _render(call: Call[VllmClassifyBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    activation = served.info.labels_activation if call.body.activated() else "identity"
    data: list[dict[str, Any]] = []
    for document in result.documents:
        shares, count = probabilities(document.values, activation), len(document.values)
        label = label_names(served.info, count)[shares.index(max(shares))]
        data.append({"index": document.index, "label": label, "probs": shares, "num_classes": count})
    return {
        "id": id,
        "object": "list",
        "created": int(time.time()),
        "model": served.names[0],
        "data": data,
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }


CLASSIFY = Endpoint(
    paths=("/classify", "/invocations"),
    claims=lambda fields, served: "input" in fields and bool(served.info.labels),
    summary="The labels of texts by a classifier (vLLM)",
    body=VllmClassifyBody,
    reply=VllmClassifyReply,
    parse=_parse,
    render=_render,
    id_prefix="classify-",
    examples={"texts": {"input": ["hi", "The giant panda is a bear."]}},
)
