"""Pictures: from a file's bytes to RGB, and from RGB to the size that the model is shown.

Where the authors' code is particular (alpha over white, PIL's bicubic), this does the same. Beyond it, EXIF
orientation is honoured, 16 bits are scaled and not clipped, and alpha goes over white in every mode that
has it, so that one picture looks the same in every encoding.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import PIL.Image

from rerankd.media.containers import container_of, webp_size
from rerankd.media.decoding import Decoding
from rerankd.media.limits import BadMedia, MediaLimits, NotRead
from rerankd.media.sizing import fit
from rerankd.media.unread import picture_kind

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

MAX_SCANS = 100
"""Passes over the whole picture that a JPEG may take; encoders make about ten."""
MAX_SCANNED_PIXELS = 1 << 30
"""Pixels that the passes of a JPEG may go over in all, since nothing interrupts its decoder."""

_WHITE = (255, 255, 255)
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker that a length follows, or the end."""
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9

_RGB_BYTES = 4
"""Bytes that Pillow takes for a pixel of RGB."""
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Bytes that Pillow takes for a pixel of other modes, where they are not four."""
_DECODER_BYTES = {"WEBP": 12, "AVIF": 20, "TIFF": 8}
"""Bytes a pixel that a decoder takes beside the picture, as measured: canvases, planes, a strip of 16 bits."""
_TILE_BYTES = 8
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_COEFFICIENT_BYTES = 2
"""Of a JPEG in several passes, for each sample."""

_ORIENTATION = 0x0112
_BAND_PIXELS = 1 << 20
"""Pixels that are made RGB at a time."""


class _Turn(NamedTuple):
    """How a picture is turned upright, and where a band of its rows comes to lie: on its side, counted from the end."""

    method: PIL.Image.Transpose
    aside: bool
    from_end: bool


_TURNS = {
    2: _Turn(PIL.Image.Transpose.FLIP_LEFT_RIGHT, aside=False, from_end=False),
    3: _Turn(PIL.Image.Transpose.ROTATE_180, aside=False, from_end=True),
    4: _Turn(PIL.Image.Transpose.FLIP_TOP_BOTTOM, aside=False, from_end=True),
    5: _Turn(PIL.Image.Transpose.TRANSPOSE, aside=True, from_end=False),
    6: _Turn(PIL.Image.Transpose.ROTATE_270, aside=True, from_end=True),
    7: _Turn(PIL.Image.Transpose.TRANSVERSE, aside=True, from_end=True),
    8: _Turn(PIL.Image.Transpose.ROTATE_90, aside=True, from_end=False),
}
"""By EXIF orientation."""


class Opened(NamedTuple):
    """A picture of which the header is read, and the bytes that it takes to decode it and make it RGB."""

    image: PIL.Image.Image
    memory: int


def open_image(data: bytes, limits: MediaLimits, decoding: Decoding) -> Opened:
    """The (first) picture in a file, for `to_rgb` to decode.

    Raises NotRead for what is not one of `FORMATS`, and BadMedia for what is over `limits.pixels` or the limits on
    passes, or has a damaged header.
    """
    try:
        with _canvases(data, limits, decoding):
            image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except BadMedia:
        raise
    except PIL.UnidentifiedImageError as error:
        raise NotRead(_not_an_image(data, decoding)) from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise BadMedia(f"the picture is over the limit of {limits.pixels:,} pixels") from error
    except Exception as error:  # a damaged header can make a decoder raise anything
        raise BadMedia(f"the picture's header is damaged ({error})") from error
    limits.check_pixels(*image.size)
    scans = _scans(data, decoding) if image.format in ("JPEG", "MPO") else 1
    allowed = min(MAX_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height))
    if scans > allowed:
        raise BadMedia(f"the JPEG takes more than {allowed} passes to decode; save it anew")
    return Opened(image, memory_of(image, scans))


def _canvases(data: bytes, limits: MediaLimits, decoding: Decoding) -> AbstractContextManager[None]:
    """Memory for a WebP while it is opened, which makes its canvases. Raises BadMedia for one that is too large."""
    if (size := webp_size(data)) is None:
        return nullcontext()
    limits.check_pixels(*size)
    return decoding.holding(size[0] * size[1] * (_RGB_BYTES + _DECODER_BYTES["WEBP"]))


def memory_of(image: PIL.Image.Image, scans: int = 1) -> int:
    """Bytes that it takes at most to decode a picture, and to make it RGB beside what is decoded.

    scans: passes over the whole picture, if it is a JPEG
    """
    decoder = _DECODER_BYTES.get(image.format or "", 0)
    if scans > 1:
        decoder = _COEFFICIENT_BYTES * len(image.getbands())
    tags = getattr(image, "tag_v2", {})
    tile = _integer(tags.get(_TILE_WIDTH)) * _integer(tags.get(_TILE_LENGTH)) * _TILE_BYTES
    stored = _STORED_BYTES.get(image.mode, _RGB_BYTES)
    return image.width * image.height * (stored + max(decoder, _RGB_BYTES)) + tile


def to_rgb(image: PIL.Image.Image, limits: MediaLimits) -> PIL.Image.Image:
    """A picture of any mode as upright RGB, transparent parts white.

    Raises BadMedia for one that is over `limits.pixels` or cannot be decoded to its end.
    """
    limits.check_pixels(*image.size)
    try:
        image.load()
    except Exception as error:  # decoders of damaged data raise anything from OSError to SyntaxError
        raise BadMedia(f"the picture is truncated or damaged ({error}); send the whole file") from error
    try:
        return _upright_rgb(image)
    except (ValueError, OSError) as error:
        raise BadMedia(f"a picture of mode {image.mode} cannot be converted to RGB ({error})") from error


def resize(
    image: PIL.Image.Image, factor: int, min_pixels: int, max_pixels: int, least_side: int = 1
) -> PIL.Image.Image:
    """The picture with sides that are multiples of `factor`, within the pixel bounds. Raises BadMedia as `fit`."""
    height, width = fit(image.height, image.width, factor, min_pixels, max_pixels, least_side)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def resize_memory(image: PIL.Image.Image, factor: int, min_pixels: int, max_pixels: int, least_side: int = 1) -> int:
    """Bytes that `resize` takes, upright or not, its result as a picture and as an array included. Raises as `fit`."""
    height, width = fit(image.height, image.width, factor, min_pixels, max_pixels, least_side)
    return _RGB_BYTES * (max(width * image.height, height * image.width) + 2 * width * height)


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Band by band, so that never more than two whole pictures are held."""
    turn = _TURNS.get(_orientation(image))
    if turn is None and image.mode == "RGB" and not image.has_transparency_data:
        return image
    is_grey_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not is_grey_16:
        raise ValueError("32-bit samples do not define white; save the picture with 8 or 16 bits a channel")
    width, height = image.size
    upright = PIL.Image.new("RGB", (height, width) if turn and turn.aside else (width, height))
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image.crop((0, top, width, bottom))
        band = _from_16_bit(band) if is_grey_16 else _flatten(band)
        at = height - bottom if turn and turn.from_end else top
        upright.paste(band.transpose(turn.method) if turn else band, (at, 0) if turn and turn.aside else (0, at))
    return upright


def _orientation(image: PIL.Image.Image) -> int:
    try:
        return _integer(image.getexif().get(_ORIENTATION))
    except Exception:  # metadata that cannot be read says nothing about orientation
        return 0


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _flatten(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = PIL.Image.new("RGB", image.size, _WHITE)
        paper.paste(layered, mask=layered.getchannel("A"))
        return paper
    return image.convert("RGB")


def _from_16_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 16 bits by its high byte, as Pillow itself reads colour of 16 bits."""
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[samples == clear] = 255
    return PIL.Image.fromarray(grey).convert("RGB")


def _scans(data: bytes, decoding: Decoding) -> int:
    """Scans of a JPEG's (first) picture, counted from marker to marker as decoders go (ITU-T T.81, annex B)."""
    at, scans = 2, 0
    while (marker := _JPEG_MARKER.search(data, at)) and (kind := data[marker.end() - 1]) != _JPEG_END:
        decoding.go_on()
        scans += kind == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _not_an_image(data: bytes, decoding: Decoding) -> str:
    """Nothing of the file itself is told: it may come from where only this machine can look."""
    kind = picture_kind(data, decoding.go_on)
    if kind == "AVIF":
        return "the AVIF picture is truncated, damaged or of a form that is not read; convert it to JPEG or PNG"
    if kind is not None:
        return f"pictures of this kind are not supported ({kind}); convert it to JPEG or PNG"
    if container_of(data) in ("mov", "matroska"):
        return "this is a video, not an image; send it as a video part"
    return f"this file of {len(data):,} bytes is not an image; {', '.join(FORMATS)} are supported"
