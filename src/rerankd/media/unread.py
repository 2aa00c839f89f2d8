"""Recognises unsupported formats of images and videos, so that an error can name the format and say what to do."""

from __future__ import annotations

import re

from rerankd.media.containers import iso_image
from rerankd.media.decoding import GoOn

_IMAGES = (
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "icon"),
)
_SVG_BEGINS_WITHIN = 4096

_VIDEOS = (
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "AVI"),
    (re.compile(rb"FLV\x01"), "Flash"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "Windows Media"),
    (re.compile(rb"\x00\x00\x01[\xba\xb3]"), "MPEG"),
    (re.compile(rb"\x47.{187}\x47", re.DOTALL), "MPEG transport stream"),
    (re.compile(rb"OggS"), "Ogg"),
)


def unsupported_image(data: bytes, go_on: GoOn) -> str | None:
    """The name of an unsupported image format, if the file has one; else None."""
    iso = iso_image(data, go_on)
    if iso is not None:
        return iso
    head = data[:_SVG_BEGINS_WITHIN].lstrip().lower()
    if head.startswith(b"<") and b"<svg" in head and b"<html" not in head:
        return "SVG"
    return next((name for begin, name in _IMAGES if data.startswith(begin)), None)


def unsupported_video(data: bytes) -> str | None:
    """The name of an unsupported video format, if the file has one; else None."""
    return next((name for begin, name in _VIDEOS if begin.match(data)), None)
