"""Fields of vLLM's rerank and score bodies that SGLang's bodies do not have."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Discriminator, Field, Tag

from rerankd.schemas.contents import ContentBody, Message, Open, by_type
from rerankd.schemas.lists import DocumentList

Documents: TypeAlias = Annotated[
    Annotated[DocumentList[ContentBody], Tag("<list>")]
    | Annotated[str, Tag("<string>")]
    | Annotated[Message, Tag("<message>")],
    Discriminator(
        by_type(list="list", string="str", message="dict"),
        custom_error_type="documents",
        custom_error_message="must be a list of documents, or one document",
    ),
]


class VllmOptions(Open):
    """Fields of vLLM's that SGLang has not."""

    padding: Literal["max_length", "do_not_pad"] | None = Field(
        None, description="without effect: no padding is ever computed.", examples=[None]
    )
    priority: int = Field(0, description="without effect: short requests are preferred, whatever their priority.")
    cache_salt: str | None = Field(
        None, description="without effect: nothing is cached from one request to the next.", examples=[None]
    )


class VllmUsage(BaseModel):
    """Tokens of every document's whole prompt."""

    prompt_tokens: int
    total_tokens: int


class Activated(Open):
    """The field that asks for logits, with the names that it had in older versions of vLLM."""

    use_activation: bool | None = Field(
        None, description="false for the model's logits in place of scores.", examples=[None]
    )
    activation: bool | None = Field(
        None, description="an older name of `use_activation`, which goes first.", examples=[None]
    )
    softmax: bool | None = Field(
        None, description="a still older name of `use_activation`; both others go first.", examples=[None]
    )

    def activated(self) -> bool:
        """Whether scores are asked for. The first name that is given decides, as in `PoolingParams`."""
        switches = (self.use_activation, self.activation, self.softmax)
        return next((switch for switch in switches if switch is not None), True)


def as_list(documents: Documents) -> list[ContentBody]:
    """One document, or several, as a list."""
    return documents if isinstance(documents, list) else [documents]


def no_use_for(body: VllmOptions) -> list[str]:
    """The options that were given and have no effect."""
    ignored = [name for name in ("priority", "cache_salt") if getattr(body, name)]
    return [*ignored, "padding"] if body.padding == "max_length" else ignored
