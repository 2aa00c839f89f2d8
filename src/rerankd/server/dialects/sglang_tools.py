"""SGLang's other routes: `/v1/score` for the probabilities of next tokens, and facts of the server's model.

As of SGLang 0.5.23 (`sglang/srt/entrypoints/openai/protocol.py`, `serving_score.py`, `http_server.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.core import Content, Labels, RerankRequest, RerankResult, Text, Tokens, text_content
from rerankd.limits import RequestLimits
from rerankd.schemas.contents import Open, by_type
from rerankd.schemas.lists import DocumentList, IdList, LabelList
from rerankd.server.dialects.base import Call, Endpoint, Nothing, Served
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.probes import ready
from rerankd.server.problems import Problem
from rerankd.version import __version__

CHARACTERS_OF_A_TOKEN = 16
"""More than texts have on an average: prompts with more characters are refused before they are put together."""
TextOrIds: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[IdList[int], Tag("<ids>")],
    Discriminator(
        by_type(string="str", ids="list"),
        custom_error_type="item",
        custom_error_message="must be a text or a list of token ids",
    ),
]
Items: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[DocumentList[TextOrIds], Tag("<list>")],
    Discriminator(
        by_type(string="str", list="list"),
        custom_error_type="items",
        custom_error_message="must be a text, or a list of texts or of lists of token ids",
    ),
]


class SglangScoreBody(Open):
    """SGLang's scoring request: how probable each label is as the next token after a query and an item.

    The two are put together as they are: a chat template, and the model's own prompt, are the client's to write.
    """

    model: str | None = Field(None, description="the name of the model; another name is ignored.", examples=[None])
    query: TextOrIds | None = Field(
        None,
        description="the beginning of every prompt: a text, whose special tokens count as such, or token ids; null "
        "for prompts that are only the items.",
        examples=["Is this about pandas? "],
    )
    items: Items = Field(
        description="the rest of each prompt: a text or several, or lists of token ids if the query is one.",
        examples=[["The giant panda is a bear. Answer:"]],
    )
    label_token_ids: LabelList[int] = Field(
        description="the token ids whose probabilities to return, such as those of yes and no.",
        examples=[[9693, 2152]],
    )
    apply_softmax: bool = Field(
        False,
        description="true for probabilities among the labels, which add up to 1; false for those among the whole "
        "vocabulary.",
    )
    item_first: bool = Field(False, description="true to put the query after each item.")

    def to_request(self, limits: RequestLimits) -> RerankRequest:
        """The items, and the query that is put before or behind each.

        Raises Problem for texts beside token ids, and for prompts that are together too long for the limits.
        """
        items = [self.items] if isinstance(self.items, str) else self.items
        length = len(self.query or "") * len(items) + sum(map(len, items))
        if length > limits.tokens * (CHARACTERS_OF_A_TOKEN if isinstance(next(iter(items), ""), str) else 1):
            raise Problem(400, f"Query and items make {limits.exceeded('tokens')}.", "items", well_formed=True)
        for index, item in enumerate(items):
            if self.query is not None and type(item) is not type(self.query):
                kind = "a text" if isinstance(self.query, str) else "a list of token ids"
                raise Problem(400, f"must be {kind}, as the query is.", f"items[{index}]")
        return RerankRequest(
            query=() if self.query is None else _content(self.query),
            documents=tuple(map(_content, items)),
            labels=Labels(tuple(self.label_token_ids), self.apply_softmax, self.item_first),
        )


def _content(item: str | list[int]) -> Content:
    return (Text(item),) if isinstance(item, str) else (Tokens(tuple(item)),)


class SglangUsage(BaseModel):
    """Tokens of every whole prompt."""

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
    """The served model."""

    model_path: str
    tokenizer_path: str
    is_generation: bool
    preferred_sampling_params: str | None
    model_type: str
    architectures: list[str]
    has_image_understanding: bool


class SglangServerInfo(BaseModel):
    """The server's settings, under the names of SGLang's flags."""

    model_path: str
    tokenizer_path: str
    served_model_name: str
    device: str
    dtype: str
    quantization: str | None
    context_length: int
    is_embedding: bool
    max_queued_requests: int | None
    version: str


def _parse(body: SglangScoreBody, served: Served) -> Call[SglangScoreBody]:
    # As SGLang has it, no items are no error.
    ignored = [*ignored_model(body.model, served), *body.unknown()]
    fields = {"documents": "items", "labels": "label_token_ids"}
    return Call(body, (body.to_request(served.limits),), tuple(ignored), fields=fields)


def _render(call: Call[SglangScoreBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens, "completion_tokens": 0}
    return {
        "scores": [list(document.labels) for document in result.documents],
        "model": served.names[0],
        "usage": usage,
        "object": "scoring",
    }


def _model_info(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    info = served.info
    return {
        "model_path": info.model,
        "tokenizer_path": info.model,
        "is_generation": False,
        "preferred_sampling_params": None,
        "model_type": info.family,
        "architectures": [info.architecture],
        "has_image_understanding": info.supports_vision,
    }


def _server_info(call: Call[Any], results: Sequence[RerankResult], id: str, served: Served) -> object:
    info = served.info
    return {
        "model_path": info.model,
        "tokenizer_path": info.model,
        "served_model_name": served.names[0],
        "device": info.device,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "context_length": info.max_model_len,
        "is_embedding": info.family != "decoder",
        "max_queued_requests": served.max_queued_calls,
        "version": __version__,
    }


SCORE = Endpoint(
    paths=("/v1/score",),
    summary="Probabilities of tokens as a decoder's next one (SGLang)",
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
    summary="The served model (SGLang)",
    body=Nothing,
    reply=SglangModelInfo,
    parse=lambda body, served: Call(body, ()),
    render=_model_info,
    methods=("GET",),
)
HEALTH_GENERATE = Endpoint(
    paths=("/health_generate",),
    summary="200 once the model has scored a pair (SGLang)",
    body=Nothing,
    reply=None,
    parse=lambda body, served: Call(body, (RerankRequest(text_content("alive"), (text_content("yes"),)),)),
    render=lambda call, results, id, served: None,
    methods=("GET",),
    probe=True,
)
READY = Endpoint(
    paths=("/ready",),
    summary="200 while the server takes requests (SGLang)",
    body=Nothing,
    reply=None,
    parse=ready,
    render=lambda call, results, id, served: None,
    methods=("GET",),
    probe=True,
)
SERVER_INFO = Endpoint(
    paths=("/get_server_info", "/server_info"),
    summary="How the model is served (SGLang)",
    body=Nothing,
    reply=SglangServerInfo,
    parse=lambda body, served: Call(body, ()),
    render=_server_info,
    methods=("GET",),
)
