"""The forms of a query or a document in Python, and the contents that they stand for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from rerankd.core import Content, Image, InvalidRequest, Part, Text, Video, text_content

ContentLike: TypeAlias = str | Sequence[Part] | Mapping[str, Any]
"""A string, the parts of a content, or the model authors' `{"text": ..., "image": ..., "video": ...}`."""

KEYS = ("text", "image", "video", "fps", "max_frames")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".tif")


def to_content(value: ContentLike, field: str) -> Content:
    """The content that a value stands for.

    A mapping is what `format_mm_content` of the authors' `qwen3_vl_reranker.py` reads (repository
    QwenLM/Qwen3-VL-Embedding): one or a list of each kind, videos first, then images, then texts. A list under `video`
    is one video where it begins with an image, and otherwise several videos. `fps` and `max_frames` go to the videos.

    Raises InvalidRequest, naming `field`, for anything else.
    """
    if isinstance(value, str):
        return text_content(value)
    if isinstance(value, Mapping):
        return tuple(_of_mapping(value, field))
    parts: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (None,)
    if all(isinstance(part, (Text, Image, Video)) for part in parts):
        for part in parts:
            _check(part, field)
        return parts
    raise InvalidRequest(
        field,
        f"is of the type {type(value).__name__}; give a string, a list of Text, Image and Video, or a dict of "
        f"{', '.join(KEYS)}",
    )


def _check(part: Part, field: str) -> None:
    """Raises InvalidRequest for a value of another type."""
    if isinstance(part, Text) and not isinstance(part.text, str):
        raise InvalidRequest(field, f"has a Text of the type {type(part.text).__name__}; give a string")
    for name in ("min_pixels", "max_pixels", "fps", "max_frames"):
        number = getattr(part, name, None)
        kind = Real if name == "fps" else Integral
        if number is not None and (isinstance(number, bool) or not isinstance(number, kind)):
            raise InvalidRequest(field, f"has {number!r} as {name}; give a {'whole ' * (kind is Integral)}number")


def _of_mapping(value: Mapping[str, Any], field: str) -> Iterator[Part]:
    for key in value:
        if key not in KEYS:
            raise InvalidRequest(field, f"has the unknown key {key!r}; a dict has {', '.join(KEYS)}")
    fps, max_frames = value.get("fps"), value.get("max_frames")
    _check(Video(None, fps, max_frames), field)
    video = value.get("video")
    if video is not None:
        for source in [video] if _is_one_video(video) else video:
            yield Video(source, fps, max_frames)
    for image in _listed(value.get("image")):
        yield Image(image)
    for text in _listed(value.get("text")):
        if not isinstance(text, str):
            raise InvalidRequest(
                field, f"has a value of the type {type(text).__name__} under 'text'; give a string or a list of them"
            )
        yield Text(text)


def _listed(value: Any) -> Sequence[Any]:
    return () if value is None else value if isinstance(value, (list, tuple)) else (value,)


def _is_one_video(video: Any) -> bool:
    if not isinstance(video, (list, tuple)):
        return True
    if not video or isinstance(video[0], (list, tuple)):
        return False
    first = video[0]
    if isinstance(first, (str, os.PathLike)):
        name = str(first)
        path = urlsplit(name).path if name.startswith(("http://", "https://")) else name
        return path.lower().endswith(IMAGE_SUFFIXES)
    return True
