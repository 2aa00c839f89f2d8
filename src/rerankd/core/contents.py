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
    """A picture in a content: an http(s), `data:` or `file:` URL, or offline a path or a PIL image."""

    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A video in a content: a URL or path as for `Image`, or a sequence of pictures as its frames."""

    source: Any
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A piece of a prompt as token ids. Only a request with `labels` may hold one."""

    ids: tuple[int, ...]


Part: TypeAlias = Text | Image | Video | Tokens
Content: TypeAlias = tuple[Part, ...]


def identity(part: Part) -> Hashable:
    """Equal for equal parts: strings by their characters, pictures by object identity."""

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
    """The content that a plain string stands for."""
    return (Text(text),)
