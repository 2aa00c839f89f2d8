"""Kinds of pictures and films that are not supported, by their first bytes, so that an error can say what to do."""

from __future__ import annotations

import re

from rerankd.media.containers import iso_picture
from rerankd.media.decoding import GoOn

_PICTURES = (
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "icon"),
)
_SVG_BEGINS_WITHIN = 4096

_FILMS = (
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "AVI"),
    (re.compile(rb"FLV\x01"), "Flash"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "Windows Media"),
    (re.compile(rb"\x00\x00\x01[\xba\xb3]"), "MPEG"),
    (re.compile(rb"\x47.{187}\x47", re.DOTALL), "MPEG transport stream"),
    (re.compile(rb"OggS"), "Ogg"),
)


def picture_kind(data: bytes, go_on: GoOn) -> str | None:
    """The name of an unsupported kind of picture; None for any other file."""
    iso = iso_picture(data, go_on)
    if iso is not None:
        return iso
    head = data[:_SVG_BEGINS_WITHIN].lstrip().lower()
    if head.startswith(b"<") and b"<svg" in head and b"<html" not in head:
        return "SVG"
    return next((name for begin, name in _PICTURES if data.startswith(begin)), None)


def film_kind(data: bytes) -> str | None:
    """The name of an unsupported kind of film; None for any other file."""
    return next((name for begin, name in _FILMS if begin.match(data)), None)
