"""vLLM's routes around a model: its tokenizer, its version, its load (vLLM 0.32, `vllm/entrypoints/serve/`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from rerankd import work
from rerankd.core import RerankResult
from rerankd.schemas.contents import Open
from rerankd.server.dialects.base import Call, Endpoint, Nothing, Served
from rerankd.server.dialects.names import only_ours
from rerankd.server.dialects.probes import ready
from rerankd.version import __version__


class VllmTokenizeBody(Open):
    """vLLM's tokenize request, of a text."""

    model: str | None = Field(None, description="the name of the model, as in /v1/models.", examples=[None])
    prompt: str = Field(description="the text.", examples=["The giant panda is a bear."])
    add_special_tokens: bool = Field(True, description="whether the tokens that begin and end a prompt are added.")
    return_token_strs: bool | None = Field(False, description="whether the tokens are given as strings too.")


class VllmTokenizeReply(BaseModel):
    """A text's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class VllmVersion(BaseModel):
    """The server's version."""

    version: str


class VllmLoad(BaseModel):
    """How many calls are being answered."""

    server_load: int


def _parse(body: VllmTokenizeBody, served: Served) -> Call[VllmTokenizeBody]:
    only_ours(body.model, served)
    return Call(body, (), tuple(body.unknown()), fields={"text": "prompt", "documents": "prompt"})


def _tokenize(call: Call[VllmTokenizeBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    with work.bounded(served.limits):
        tokens = served.tokenize(call.body.prompt, call.body.add_special_tokens)
    return {
        "count": len(tokens),
        "max_model_len": served.info.max_model_len,
        "tokens": [token.id for token in tokens],
        "token_strs": [token.text for token in tokens] if call.body.return_token_strs else None,
    }


def _nothing(body: Any, served: Served) -> Call[Any]:
    return Call(body, ())


TOKENIZE = Endpoint(
    paths=("/tokenize",),
    summary="The tokens of a text (vLLM)",
    body=VllmTokenizeBody,
    reply=VllmTokenizeReply,
    parse=_parse,
    render=_tokenize,
    examples={"a text": {"prompt": "The giant panda is a bear.", "return_token_strs": True}},
)
VERSION = Endpoint(
    paths=("/version",),
    summary="The server's version (vLLM)",
    body=Nothing,
    reply=VllmVersion,
    parse=_nothing,
    render=lambda call, results, id, served: {"version": __version__},
    methods=("GET",),
)
PING = Endpoint(
    paths=("/ping",),
    summary="200 while the server takes requests (vLLM, as SageMaker asks)",
    body=Nothing,
    reply=None,
    parse=ready,
    render=lambda call, results, id, served: None,
    methods=("GET", "POST"),
    probe=True,
)
LOAD = Endpoint(
    paths=("/load",),
    summary="The number of calls in progress (vLLM)",
    body=Nothing,
    reply=VllmLoad,
    parse=_nothing,
    render=lambda call, results, id, served: {"server_load": served.running()},
    methods=("GET",),
)
