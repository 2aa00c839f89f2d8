"""Texts in bodies: one, or a list of them."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Discriminator, Tag
from pydantic_core import PydanticCustomError

from rerankd.schemas.contents import by_type
from rerankd.schemas.lists import DocumentList


def _no_ids(value: Any) -> Any:
    """Refuse token ids: clients' ids are mostly another tokenizer's, and would be other words here."""
    if isinstance(value, (int, list)) and not isinstance(value, bool):
        raise PydanticCustomError(
            "token_ids",
            "must be a text; token ids are not read, since most are another tokenizer's (LangChain's OpenAIEmbeddings "
            "sends texts with check_embedding_ctx_length=False)",
        )
    return value


Texts: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[DocumentList[Annotated[str, BeforeValidator(_no_ids)]], Tag("<list>")],
    Discriminator(
        by_type(string="str", list="list"),
        custom_error_type="texts",
        custom_error_message="must be a text, or a list of texts",
    ),
]


def all_texts(texts: Texts) -> list[str]:
    """One text, or several, as a list."""
    return texts if isinstance(texts, list) else [texts]
