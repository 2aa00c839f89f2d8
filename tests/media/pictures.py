"""A picture, and pictures as files and `data:` URLs."""

from __future__ import annotations

import base64
import io

import PIL.Image

from tests.media.patterns import pattern

PICTURE = PIL.Image.fromarray(pattern(96, 64))


def png(image: PIL.Image.Image = PICTURE) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()
