"""TEI's `/embed` (https://huggingface.github.io/text-embeddings-inference)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from rerankd.core import Embeddings, RerankRequest, RerankResult, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.texts import Texts, all_texts
from rerankd.server.dialects.base import Call, Endpoint, Served
from rerankd.server.dialects.tei_texts import Empty, TeiCut


class TeiEmbedBody(TeiCut):
    """TEI's request for embeddings."""

    inputs: Texts = Field(
        description="a text, or a list of texts.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[["The giant panda is a bear.", "hi"]],
    )
    normalize: bool = Field(True, description="whether each embedding has length 1.")
    prompt_name: str | None = Field(
        None,
        description="the name of a prompt in the model's folder, to put before each text; null for the "
        "folder's default.",
        examples=[None],
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="the number of values to keep, from the first, for models that are trained for it; null for all.",
        examples=[None],
    )


def _parse(body: TeiEmbedBody, served: Served) -> Call[TeiEmbedBody]:
    texts = all_texts(body.inputs)
    if not texts:
        raise Empty("inputs")
    outputs = Embeddings(body.prompt_name, body.normalize, body.dimensions)
    request = RerankRequest((), tuple(map(text_content, texts)), truncation=body.cut(), outputs=outputs)
    words = {"documents": "inputs", "outputs.prompt": "prompt_name", "outputs.dimensions": "dimensions"}
    return Call(body, (request,), tuple(body.unknown()), fields=words)


def _render(call: Call[TeiEmbedBody], results: Sequence[RerankResult], id: str, served: Served) -> object:
    (result,) = results
    return [list(document.values) for document in result.documents]


EMBED = Endpoint(
    paths=("/embed",),
    summary="Embed texts with a bi-encoder (TEI)",
    body=TeiEmbedBody,
    reply=list[list[float]],
    parse=_parse,
    render=_render,
    examples={
        "texts": {"inputs": ["what is panda?", "The giant panda is a bear."]},
        "one text, behind the model's prompt": {"inputs": "what is panda?", "prompt_name": "query", "truncate": True},
    },
)
