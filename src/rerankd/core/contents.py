"""The content of a query or a document: texts, images, videos."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a content."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a content.

    source: an http(s), `data:` or `file:` URL; in Python also a path or a PIL image
    min_pixels, max_pixels: limits on its size after resizing; None for the model's own
    """

    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A video in a content.

    source: a URL or a path as for `Image`, or a sequence of images as its frames
    fps: frames to read a second; None for the model's own
    max_frames: the most frames to read; None for the model's own
    """

    source: Any
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A piece of a prompt as token ids. Only a request with `labels` may have one."""

    ids: tuple[int, ...]


Part: TypeAlias = Text | Image | Video | Tokens
Content: TypeAlias = tuple[Part, ...]


def identity(part: Part) -> Hashable:
    """A key that is equal for equal parts: strings compare by their characters, images by object identity."""

    def of(source: object) -> Hashable:
        if isinstance(source, (list, tuple)):
            return tuple(of(item) for item in source)
        return source if isinstance(source, str) else id(source)

    if isinstance(part, Text):
        return Text, part.text
    if isinstance(part, Tokens):
        return Tokens, part.ids
    if isinstance(part, Image):
        return Image, of(part.source), part.min_pixels, part.max_pixels
    return Video, of(part.source), part.fps, part.max_frames


def text_content(text: str) -> Content:
    """The content of a plain string."""
    return (Text(text),)
