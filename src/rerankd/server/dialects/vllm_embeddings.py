"""OpenAI's embeddings API, as vLLM 0.32 has it (`vllm/entrypoints/pooling/embed/`)."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from rerankd.core import Embeddings, RerankResult
from rerankd.server.dialects.base import Call, Endpoint, Served
from rerankd.server.dialects.names import ignored_model
from rerankd.server.dialects.vllm_common import VllmUsage
from rerankd.server.dialects.vllm_texts import VllmTexts


class VllmEmbeddingsBody(VllmTexts):
    """OpenAI's request, for bi-encoders."""

    encoding_format: Literal["float", "base64"] = Field(
        "float", description="`base64` for the bytes of little-endian float32 numbers, which OpenAI's client asks for."
    )
    use_activation: bool | None = Field(
        None,
        description="whether each embedding has length 1; null: where the model compares by cosine.",
        examples=[None],
    )
    normalize: bool | None = Field(
        None, description="an older name of `use_activation`, which goes first.", examples=[None]
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="the number of values to keep, from the first, for models that are trained for it; null for all.",
        examples=[None],
    )
    embed_dtype: Literal["float32"] = Field("float32", description="of numbers in base64.")
    endianness: Literal["native", "little"] = Field("native", description="of numbers in base64.")


class OpenaiEmbeddingsBody(VllmEmbeddingsBody):
    """OpenAI's request as TEI and Infinity take it: for any model's name, and for vectors of length 1."""

    model: str | None = Field(None, description="a name other than the served model's is ignored.", examples=[None])

    def ignored_name(self, served: Served) -> list[str]:
        """See `VllmTexts`."""
        return ignored_model(self.model, served)


class VllmEmbedding(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="the text's index in the request")
    embedding: list[float] | str


class VllmEmbeddingsReply(BaseModel):
    """The embeddings of the texts, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VllmEmbedding]
    usage: VllmUsage


Body = TypeVar("Body", bound=VllmEmbeddingsBody)


def _parse(body: Body, served: Served) -> Call[Body]:
    normalize = body.normalize if body.use_activation is None else body.use_activation
    if normalize is None and isinstance(body, OpenaiEmbeddingsBody):
        normalize = True
    return body.call(Embeddings(normalize=normalize, dimensions=body.dimensions), served)


def _render(call: Call[Body], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    encoded = _base64 if call.body.encoding_format == "base64" else list
    return {
        "id": id,
        "object": "list",
        "created": int(time.time()),
        "model": served.names[0],
        "data": [
            {"object": "embedding", "index": document.index, "embedding": encoded(document.values)}
            for document in result.documents
        ],
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }


def _base64(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


EMBEDDINGS = Endpoint(
    paths=("/v1/embeddings", "/invocations"),
    claims=lambda fields, served: "input" in fields and not served.info.labels,
    summary="Embed texts with a bi-encoder (OpenAI, vLLM)",
    body=VllmEmbeddingsBody,
    reply=VllmEmbeddingsReply,
    parse=_parse,
    render=_render,
    id_prefix="embd-",
    examples={
        "texts": {"input": ["what is panda?", "The giant panda is a bear."]},
        "one text, in base64": {"input": "what is panda?", "encoding_format": "base64", "dimensions": 2},
    },
)


def openai_embeddings(api: str, *paths: str) -> Endpoint[OpenaiEmbeddingsBody]:
    """The endpoint of another API that has OpenAI's form."""
    return Endpoint(
        paths=paths,
        summary=f"Embed texts with a bi-encoder, in OpenAI's form ({api})",
        body=OpenaiEmbeddingsBody,
        reply=VllmEmbeddingsReply,
        parse=_parse,
        render=_render,
        id_prefix="embd-",
        examples={"texts": {"input": ["what is panda?", "The giant panda is a bear."], "model": "bge-m3"}},
    )
