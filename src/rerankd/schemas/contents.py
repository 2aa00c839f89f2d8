"""A query or a document in a body: a string, a list of parts, or an object with its `content`.

The parts are those of OpenAI's chat messages, as vLLM (`vllm/entrypoints/chat_utils.py`) and SGLang
(`sglang/srt/entrypoints/openai/protocol.py`) read them, with the limits of `core.Image` and `core.Video` beside `url`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetJsonSchemaHandler, Tag, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from rerankd.core import Content, Image, Part, Text, Tokens, Video, text_content
from rerankd.schemas.lists import PartList

AT_LEAST_ONE: dict[str, Any] = {"minItems": 1}
"""A list that may not be empty, in the OpenAPI document; each API refuses an empty list in its own way."""


class Open(BaseModel):
    """A model that keeps fields it does not know, so that they can be reported, and takes null for a default."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _leave_nulls_out(cls, body: Any) -> Any:
        """Drop nulls: clients that write out every field send null for an absent value."""
        if isinstance(body, cls):
            return body
        if not isinstance(body, dict):
            raise PydanticCustomError("object", "must be an object{form}", {"form": cls._form()})
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in body.items() if value is not None or name in required}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        model = handler.resolve_ref_schema(described)
        for name, field in model.get("properties", {}).items():
            if name not in model.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                annotations = {
                    word: field.pop(word) for word in ("title", "description", "default", "examples") if word in field
                }
                value_schema = dict(field)
                field.clear()
                field.update(anyOf=[value_schema, {"type": "null"}], **annotations)
        return described

    @classmethod
    def _form(cls) -> str:
        """The form of an object of this class, as the end of an error: its required fields, or else all fields."""
        required = {name: field for name, field in cls.model_fields.items() if field.is_required()}
        if not required:
            return f" of {', '.join(f'`{name}`' for name in cls.model_fields)}"

        def example(annotation: Any) -> Any:
            return get_args(annotation)[0] if get_origin(annotation) is Literal else "..."

        form = {
            name: field.examples[0] if field.examples else example(field.annotation) for name, field in required.items()
        }
        return f", as in {json.dumps(form, ensure_ascii=False)}"

    def unknown(self) -> list[str]:
        """The names of the fields it does not know."""
        return list(self.model_extra or ())


def by_type(**types: str) -> Callable[[Any], str | None]:
    """A discriminator of a union by JSON type: `by_type(string="str", parts="list")` tags a list `<parts>`.

    A tag in angle brackets cannot be mistaken for a field's name in the path of an error.
    """
    tags = {kind: f"<{tag}>" for tag, kind in types.items()}
    return lambda value: tags.get(type(value).__name__)


class TextPart(Open):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(Open):
    """Where an image lies, and how many pixels of it are read."""

    url: str = Field(description="an http(s), `data:` or `file:` URL")
    min_pixels: int | None = Field(None, gt=0)
    max_pixels: int | None = Field(None, gt=0)


class VideoUrl(Open):
    """Where a video lies, and how many frames of it are read."""

    url: str = Field(description="an http(s), `data:` or `file:` URL")
    fps: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_frames: int | None = Field(None, gt=0)


_URL = Discriminator(
    by_type(string="str", object="dict"), custom_error_type="url", custom_error_message="must be an object with a `url`"
)


class ImagePart(Open):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[Annotated[str, Tag("<string>")] | Annotated[ImageUrl, Tag("<object>")], _URL]


class VideoPart(Open):
    """A video."""

    type: Literal["video_url"]
    video_url: Annotated[Annotated[str, Tag("<string>")] | Annotated[VideoUrl, Tag("<object>")], _URL]


def _kind_of_part(part: Any) -> str | None:
    kind = "string" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None
    return f"<{kind}>" if kind in ("string", "text", "image_url", "video_url") else None


PartBody: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part",
        custom_error_message="must be a content part: an object whose `type` is text, image_url or video_url",
    ),
]
Parts: TypeAlias = PartList[PartBody]


class Message(Open):
    """vLLM's form of a content."""

    content: Annotated[
        Annotated[str, Tag("<string>")] | Annotated[Parts, Tag("<parts>")],
        Discriminator(
            by_type(string="str", parts="list"),
            custom_error_type="content",
            custom_error_message="must be a string or a list of content parts",
        ),
    ]


ContentBody: TypeAlias = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[Parts, Tag("<parts>")] | Annotated[Message, Tag("<message>")],
    Discriminator(
        by_type(string="str", parts="list", message="dict"),
        custom_error_type="content",
        custom_error_message="must be a string, a list of content parts, or an object with its `content`",
    ),
]


def to_content(body: ContentBody) -> Content:
    """The content that a body's query or document stands for."""
    if isinstance(body, Message):
        body = body.content
    return text_content(body) if isinstance(body, str) else tuple(_part(part) for part in body)


def from_content(content: Content) -> list[dict[str, Any]]:
    """A content as the list of parts that stands for it."""
    return [_body(part) for part in content]


def unknown_fields(body: ContentBody, where: str) -> Iterator[str]:
    """The paths of fields in a content without effect."""
    if isinstance(body, Message):
        yield from (f"{where}.{name}" for name in body.unknown())
        body = body.content
    for index, part in enumerate(body if isinstance(body, list) else ()):
        place = f"{where}.content[{index}]"
        if isinstance(part, str):
            continue
        yield from (f"{place}.{name}" for name in part.unknown())
        url = getattr(part, part.type)
        if isinstance(url, Open):
            yield from (f"{place}.{part.type}.{name}" for name in url.unknown())


def _part(part: PartBody) -> Part:
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, TextPart):
        return Text(part.text)
    if isinstance(part, ImagePart):
        image = part.image_url
        return Image(image) if isinstance(image, str) else Image(image.url, image.min_pixels, image.max_pixels)
    video = part.video_url
    return Video(video) if isinstance(video, str) else Video(video.url, video.fps, video.max_frames)


def _body(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    assert not isinstance(part, Tokens)  # (no body of parts holds these)
    kind = "image_url" if isinstance(part, Image) else "video_url"
    return {"type": kind, kind: {"url": part.source}}
