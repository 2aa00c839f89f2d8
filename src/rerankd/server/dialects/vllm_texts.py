"""The fields that vLLM's bodies of texts to embed and to classify share (vLLM 0.32, `entrypoints/pooling/base/`)."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field

from rerankd.core import Embeddings, Logits, RerankRequest, Side, Truncation, text_content
from rerankd.schemas.contents import AT_LEAST_ONE
from rerankd.schemas.texts import Texts, all_texts
from rerankd.server.dialects.base import Call, Served
from rerankd.server.dialects.names import only_ours
from rerankd.server.dialects.rerank import max_tokens
from rerankd.server.dialects.tei_texts import Empty
from rerankd.server.dialects.vllm_common import VllmOptions, no_use_for
from rerankd.server.problems import Problem

Body = TypeVar("Body", bound="VllmTexts")


class VllmTexts(VllmOptions):
    """Texts, and how they are read."""

    model: str | None = Field(None, description="the name of the model, as in /v1/models.", examples=[None])
    input: Texts = Field(
        description="a text, or a list of texts.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[["The giant panda is a bear.", "hi"]],
    )
    truncation: bool = Field(
        True,
        description="whether a text that does not fit is cut (the answer reports the cut); false makes it an error.",
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="the most tokens of a text; -1 for the model's own limit.", examples=[-1]
    )
    truncation_side: Side | None = Field(
        None,
        description="the side on which a text is cut: `right` cuts its end, `left` its beginning; null is the side of "
        "the model's tokenizer, nearly always `right`.",
        examples=[None],
    )
    add_special_tokens: bool = Field(True, description="true: special tokens are never left out.")
    user: str | None = Field(None, description="a name for the caller's own records.", examples=[None])
    request_id: str | None = Field(None, description="an id for the answer, in place of a random one.", examples=[None])

    def ignored_name(self, served: Served) -> list[str]:
        """`["model"]` where that name is ignored. Raises Problem for a model that is not served."""
        only_ours(self.model, served)
        return []

    def call(self: Body, outputs: Embeddings | Logits, served: Served) -> Call[Body]:
        """The call of one request. Raises Problem for another's name, for no texts, and for limits that cannot hold."""
        ignored = self.ignored_name(served)
        texts = all_texts(self.input)
        if not texts:
            raise Empty("input")
        if not self.add_special_tokens:
            raise Problem(400, "must be true: a text without its special tokens means nothing.", "add_special_tokens")
        longest = max_tokens(self.truncate_prompt_tokens, served.info.max_model_len)
        request = RerankRequest(
            (),
            tuple(map(text_content, texts)),
            truncation=Truncation(max_tokens=longest, allowed=self.truncation, side=self.truncation_side),
            outputs=outputs,
        )
        words = {
            "documents": "input",
            "truncation.max_tokens": "truncate_prompt_tokens",
            "outputs.dimensions": "dimensions",
        }
        return Call(self, (request,), (*ignored, *no_use_for(self), *self.unknown()), self.request_id, words)
