"""TEI's `/tokenize` and `/decode` (https://huggingface.github.io/text-embeddings-inference)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd import work
from rerankd.core import RerankResult, TextToken
from rerankd.schemas.contents import AT_LEAST_ONE, Open, by_type
from rerankd.schemas.lists import IdList
from rerankd.schemas.texts import Texts, all_texts
from rerankd.server.dialects.base import Call, Endpoint, Served
from rerankd.server.dialects.tei_texts import Empty
from rerankd.server.problems import Problem

TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 32)]
Ids: TypeAlias = IdList[
    Annotated[
        Annotated[TokenId, Tag("<integer>")] | Annotated[IdList[TokenId], Tag("<list>")],
        Discriminator(
            by_type(integer="int", list="list"),
            custom_error_type="ids",
            custom_error_message="must be a token id, or a list of token ids",
        ),
    ]
]


class TeiTokenizeBody(Open):
    """TEI's request for the tokens of texts."""

    inputs: Texts = Field(
        description="a text, or a list of texts.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[["The giant panda is a bear.", "hi"]],
    )
    add_special_tokens: bool = Field(True, description="whether the tokens that begin and end a prompt are added.")
    prompt_name: str | None = Field(
        None, description="null: to get the tokens of a prompt too, put the prompt into the text.", examples=[None]
    )


class TeiToken(BaseModel):
    """A token; `start` and `stop` are bytes of the text, and null for a special one."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TeiDecodeBody(Open):
    """TEI's request for the texts of tokens."""

    ids: Ids = Field(
        description="the ids of a text's tokens, or a list of such lists.",
        json_schema_extra=AT_LEAST_ONE,
        examples=[[101, 102]],
    )
    skip_special_tokens: bool = Field(True, description="whether special tokens are left out.")

    def lists(self) -> list[list[int]]:
        """The ids of each text. Raises Problem for none, and for a list of both."""
        if not self.ids or [] in self.ids:
            raise Empty("ids")
        flat = [item for item in self.ids if isinstance(item, int)]
        if flat and len(flat) < len(self.ids):
            raise Problem(400, "must be token ids, or lists of token ids, not both.", "ids")
        return [flat] if flat else [item for item in self.ids if not isinstance(item, int)]


def _parse_texts(body: TeiTokenizeBody, served: Served) -> Call[TeiTokenizeBody]:
    if not all_texts(body.inputs):
        raise Empty("inputs")
    if body.prompt_name is not None:
        raise Problem(400, "has no effect here: send the text with the prompt before it.", "prompt_name")
    return Call(body, (), tuple(body.unknown()), fields={"text": "inputs", "documents": "inputs"})


def _tokens(
    call: Call[TeiTokenizeBody], results: Sequence[RerankResult], id: str, served: Served
) -> list[list[dict[str, Any]]]:
    answers: list[list[dict[str, Any]]] = []
    with work.bounded(served.limits):
        for text in all_texts(call.body.inputs):
            tokens = served.tokenize(text, call.body.add_special_tokens)
            work.count("values", (len(TeiToken.model_fields) - 1) * len(tokens))  # one of each is counted already
            answers.append(_described(text, tokens))
    return answers


def _described(text: str, tokens: Sequence[TextToken]) -> list[dict[str, Any]]:
    """The tokens of a text. An ordinary token's `text` is its part of the text; TEI has it so."""
    place = (
        list(range(len(text) + 1))
        if text.isascii()
        else [0, *accumulate(len(character.encode()) for character in text)]
    )
    described: list[dict[str, Any]] = []
    for token in tokens:
        start, stop = token.characters
        if token.special:
            described.append({"id": token.id, "text": token.text, "special": True, "start": None, "stop": None})
        else:
            fields = {"text": text[start:stop], "special": False, "start": place[start], "stop": place[stop]}
            described.append({"id": token.id, **fields})
    return described


def _parse_ids(body: TeiDecodeBody, served: Served) -> Call[TeiDecodeBody]:
    body.lists()
    return Call(body, (), tuple(body.unknown()))


def _texts(call: Call[TeiDecodeBody], results: Sequence[RerankResult], id: str, served: Served) -> list[str]:
    texts = []
    for ids in call.body.lists():
        work.check()
        texts.append(served.decode(ids, call.body.skip_special_tokens))
    return texts


TOKENS = (
    Endpoint(
        paths=("/tokenize",),
        summary="The tokens of texts (TEI)",
        body=TeiTokenizeBody,
        reply=list[list[TeiToken]],
        parse=_parse_texts,
        render=_tokens,
        examples={"texts": {"inputs": ["The giant panda is a bear."], "add_special_tokens": False}},
    ),
    Endpoint(
        paths=("/decode",),
        summary="The texts of tokens (TEI)",
        body=TeiDecodeBody,
        reply=list[str],
        parse=_parse_ids,
        render=_texts,
        examples={"a text's tokens": {"ids": [5, 6]}},
    ),
)
