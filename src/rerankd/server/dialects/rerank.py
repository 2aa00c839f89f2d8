"""The rerank body that vLLM's and SGLang's APIs share, and the request it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import Field

from rerankd.core import Content, OnError, RerankRequest, Side, Truncation
from rerankd.schemas.contents import ContentBody, to_content, unknown_fields
from rerankd.schemas.processor_kwargs import ProcessorKwargs
from rerankd.server.dialects.base import Call, Served
from rerankd.server.dialects.chunks import CHUNKING_WORDS, Chunked
from rerankd.server.dialects.threshold import Thresholded
from rerankd.server.problems import Problem

INSTRUCTION = ("instruct", "instruction")
LIMITS = {
    "truncation.max_tokens": "truncate_prompt_tokens",
    "truncation.max_tokens_per_doc": "max_tokens_per_doc",
    "truncation.max_tokens_per_query": "max_tokens_per_query",
    **CHUNKING_WORDS,
}
Body = TypeVar("Body", bound="RerankBody")


class ScoringBody(Chunked):
    """Fields for the model, the prompt and its length that both systems have. Each endpoint adds the texts."""

    model: str | None = Field(None, description="the name of the model, as in /v1/models.", examples=[None])
    instruct: str | None = Field(
        None, description="a description of relevant documents, for models that take an instruction.", examples=[None]
    )
    instruction: str | None = Field(None, description="another name of `instruct`.", examples=[None])
    truncation: bool = Field(
        True, description="whether texts that do not fit are cut (the answer reports cuts); false makes them an error."
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        description="the most tokens of a whole prompt, template included; -1 for the model's own limit.",
        examples=[-1],
    )
    max_tokens_per_doc: int | None = Field(
        None, ge=0, description="the most tokens of a document; 0 for no limit.", examples=[0]
    )
    max_tokens_per_query: int | None = Field(
        None, ge=0, description="the most tokens of the query; 0 for no limit.", examples=[0]
    )
    truncation_side: Side | None = Field(
        None,
        description="the side on which a text is cut: `right` cuts its end, `left` its beginning; null is the side of "
        "the model's tokenizer, nearly always `right`. The prompt around it stays.",
        examples=[None],
    )
    use_activation: bool | None = Field(
        None, description="false for the model's logits in place of scores.", examples=[None]
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="an object; `instruction` or `instruct` in it is read, before the fields of that name."
    )
    mm_processor_kwargs: ProcessorKwargs | None = Field(
        None,
        description="an object: `min_pixels` and `max_pixels` of images, `fps` and `max_frames` of videos, for parts "
        "that do not set them beside their `url`.",
        examples=[None],
    )
    user: str | None = Field(None, description="a name for the caller's own records.", examples=[None])
    request_id: str | None = Field(None, description="an id for the answer, in place of a random one.", examples=[None])

    def request(
        self,
        query: Content,
        documents: Iterable[Content],
        served: Served,
        top_n: int | None = None,
        on_error: OnError = "fail",
        min_score: float | None = None,
    ) -> RerankRequest:
        """The request that this body makes of a query and documents.

        Raises Problem for limits that cannot hold and for two instructions that differ.
        """
        show = self.mm_processor_kwargs.fill if self.mm_processor_kwargs else tuple
        return RerankRequest(
            query=show(query),
            documents=tuple(map(show, documents)),
            instruction=self._instruction()[1],
            top_n=top_n,
            truncation=Truncation(
                max_tokens=max_tokens(self.truncate_prompt_tokens, served.info.max_model_len),
                max_tokens_per_doc=self.max_tokens_per_doc or None,
                max_tokens_per_query=self.max_tokens_per_query or None,
                allowed=self.truncation,
                side=self.truncation_side,
            ),
            activation=self.activated(),
            on_error=on_error,
            chunking=self.chunking(),
            min_score=min_score,
        )

    def activated(self) -> bool:
        """Whether scores are asked for; otherwise logits."""
        return self.use_activation is not False

    def words(self) -> dict[str, str]:
        """This body's words for fields of `RerankRequest`, where they differ."""
        return {**LIMITS, "instruction": self._instruction()[0]}

    def without_effect(self) -> Iterator[str]:
        """The given fields without effect."""
        yield from self.unknown()
        for name in self.chat_template_kwargs or ():
            if name not in INSTRUCTION:
                yield f"chat_template_kwargs.{name}"
        if self.mm_processor_kwargs:
            yield from (f"mm_processor_kwargs.{name}" for name in self.mm_processor_kwargs.without_effect())

    def _instruction(self) -> tuple[str, str | None]:
        """The instruction, and the field that it came in. As in vLLM, `chat_template_kwargs` goes first."""
        for place, fields in (("chat_template_kwargs.", self.chat_template_kwargs or {}), ("", self.__dict__)):
            instructions = {place + name: fields[name] for name in INSTRUCTION if fields.get(name) is not None}
            for word, text in instructions.items():
                if not isinstance(text, str):
                    raise Problem(400, "must be a string.", word)
            if len(set(instructions.values())) > 1:
                raise Problem(400, f"differs from `{place}instruction`; give one of them.", f"{place}instruct")
            if instructions:
                return next(iter(instructions.items()))
        return "instruction", None


def max_tokens(requested: int | None, limit: int) -> int | None:
    """The most tokens of a prompt by `truncate_prompt_tokens`. Raises Problem for more than the model's limit."""
    if requested is None or requested == -1:
        return None
    if not 0 < requested <= limit:
        raise Problem(
            400, f"must be -1 or between 1 and {limit}, this model's limit, not {requested}.", "truncate_prompt_tokens"
        )
    return requested


class RerankBody(ScoringBody, Thresholded):
    """One query and documents. Documents and `top_n` are the dialect's own."""

    query: ContentBody = Field(
        description="the text to rank documents by, or a list of content parts.", examples=["what is panda?"]
    )
    on_error: OnError = Field(
        "fail",
        description="`skip` to leave out documents with an image or video that cannot be read; `failed` names them "
        "if the answer is an object, and the header X-Rerankd-Failed.",
    )

    def call(
        self: Body, documents: Sequence[ContentBody], top_n: int | None, served: Served, ignored: Iterable[str]
    ) -> Call[Body]:
        """The call that this body stands for; to `ignored` come the fields of this class without effect.

        Raises Problem for no documents, and as `request` does.
        """
        if not documents:
            raise Problem(400, "must hold at least one document.", "documents")
        request = self.request(
            to_content(self.query),
            (to_content(document) for document in documents),
            served,
            min(top_n, len(documents)) if top_n else None,
            self.on_error,
            self.lowest(),
        )
        without_effect = (*ignored, *self.without_effect(), *unknown_in(self.query, documents))
        return Call(self, (request,), without_effect, self.request_id, self.words())


def unknown_in(query: ContentBody, documents: Sequence[ContentBody]) -> Iterator[str]:
    """The paths of fields in contents without effect."""
    yield from unknown_fields(query, "query")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            yield from unknown_fields(document, f"documents[{index}]")
