"""Conversion of queries and documents from JSON values in files, and to JSON values for servers."""

from __future__ import annotations

import base64
import mimetypes
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import TypeAdapter, ValidationError

from rerankd import contents
from rerankd.core import Content, Image, InvalidRequest, Part, Text, Tokens, Video
from rerankd.schemas.contents import ContentBody
from rerankd.schemas.contents import to_content as of_body
from rerankd.schemas.wording import first_problem

_BODY: TypeAdapter[ContentBody] = TypeAdapter(ContentBody)
REMOTE = ("http:", "https:", "data:")


def to_content(value: Any, field: str) -> Content:
    """The content that a JSON value describes.

    value: a text, an object with `text`, `image` and `video` as the authors of Qwen3-VL-Reranker use, or a list of
    content parts
    field: the name for errors

    Raises InvalidRequest.
    """
    if isinstance(value, str):
        return (Text(well_formed(value)),)
    if isinstance(value, dict) and "content" not in value:
        return contents.to_content(value, field)
    try:
        return of_body(_BODY.validate_python(value))
    except ValidationError as error:
        place, problem = first_problem(error, field)
        # Here a query or a document may be an object of its parts too, which the schema of servers does not have.
        problem = (
            problem if place != field else "must be a text, an object of text, image and video, or a list of parts"
        )
        raise InvalidRequest(place, problem) from None


def is_text(content: Content) -> bool:
    """Whether a content is only text."""
    return all(isinstance(part, Text) for part in content)


def plain_text(content: Content, field: str) -> str:
    """The text of a content: its parts with nothing between, as the engine joins them.

    Raises InvalidRequest if the content holds an image or a video.
    """
    if not is_text(content):
        raise InvalidRequest(field, "holds an image or a video, which this API does not accept; use --api vllm")
    return "".join(part.text for part in content if isinstance(part, Text))


def sendable(content: Content, field: str) -> Content:
    """The content with local files replaced by `data:` URLs. Raises InvalidRequest for a file that cannot be read."""
    return tuple(_sendable(part, field) for part in content)


def parts(content: Content) -> str | list[dict[str, Any]]:
    """A content as JSON for the APIs of vLLM and SGLang: a string if the content is one text, else a list of parts."""
    if len(content) == 1 and isinstance(content[0], Text):
        return content[0].text
    return [_part(part) for part in content]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    assert not isinstance(part, Tokens)  # files hold no token ids
    kind, limits = (
        ("image_url", {"min_pixels": part.min_pixels, "max_pixels": part.max_pixels})
        if isinstance(part, Image)
        else ("video_url", {"fps": part.fps, "max_frames": part.max_frames})
    )
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return {"type": kind, kind: {"url": part.source, **given}}


def _sendable(part: Part, field: str) -> Part:
    if isinstance(part, Text):
        return part
    assert not isinstance(part, Tokens)  # files hold no token ids
    source = part.source
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidRequest(field, "holds a video as a list of images, which no API accepts; give one file")
    if isinstance(source, str) and source.startswith(REMOTE):
        return part
    name = str(source)
    path = Path(url2pathname(urlsplit(name).path)) if name.startswith("file:") else Path(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(field, f"{path} cannot be read: {error.strerror}") from None
    kind = mimetypes.guess_type(path.name)[0] or ("image/png" if isinstance(part, Image) else "video/mp4")
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    if isinstance(part, Image):
        return Image(url, part.min_pixels, part.max_pixels)
    return Video(url, part.fps, part.max_frames)


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: JSON can escape such a character, and no tokenizer accepts it."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
