"""Decoding of images to RGB, and resizing to the size for the model.

Alpha is drawn over white and resizing is Pillow's bicubic, as in the authors' code. Beyond that code, the EXIF
orientation is applied, 16-bit samples are scaled instead of clipped, and alpha is drawn over white in every mode. So an
image gives the same pixels in every encoding.
"""

from __future__ import annotations

import io
import re
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import PIL.Image

from rerankd.media.containers import container_of, webp_size
from rerankd.media.decoding import Decoding
from rerankd.media.limits import BadMedia, MediaLimits, NotRead
from rerankd.media.sizing import fit
from rerankd.media.unread import unsupported_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

MAX_SCANS = 100
"""Most passes (scans) of a JPEG. Encoders write about ten."""
MAX_SCANNED_PIXELS = 1 << 30
"""Most pixels in all passes of a JPEG together, because its decoder cannot be interrupted."""

_WHITE = (255, 255, 255)
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker of a segment with a length, or the marker of the end."""
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9

_RGB_BYTES = 4
"""Bytes of a pixel of RGB in Pillow."""
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Bytes of a pixel in Pillow, for modes with fewer bytes than RGB."""
_DECODER_BYTES = {"WEBP": 12, "AVIF": 20, "TIFF": 8}
"""Bytes for each pixel that a decoder needs beside the image (measured): canvases, planes, a strip of 16 bits."""
_TILE_BYTES = 8
"""Most bytes of a pixel in a tile of a TIFF: four samples of 16 bits."""
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_COEFFICIENT_BYTES = 2
"""Bytes of a coefficient. The decoder of a JPEG with several passes holds one for each sample."""

_ORIENTATION = 0x0112
_BAND_PIXELS = 1 << 20
"""Pixels that are converted to RGB at once."""


class _Turn(NamedTuple):
    """How to turn an image upright.

    aside: whether rows become columns
    from_end: whether the first rows end up at the right or the bottom
    """

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
"""By the value of the EXIF tag Orientation; 1 is upright."""


_LOCKS = tuple(threading.Lock() for _ in range(64))


class Opened(NamedTuple):
    """An image whose header was read, and the most bytes (`memory`) that decoding and converting it to RGB need."""

    image: PIL.Image.Image
    memory: int


def open_image(data: bytes, limits: MediaLimits, decoding: Decoding) -> Opened:
    """Read the header of the (first) image in a file. `to_rgb` decodes the image.

    Raises NotRead for a file that has none of the FORMATS, and BadMedia for a damaged header, and for an image over
    `limits.pixels` or over the limits on passes.
    """
    try:
        with _canvases(data, limits, decoding):
            image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except BadMedia:
        raise
    except PIL.UnidentifiedImageError as error:
        raise NotRead(_not_an_image(data, decoding)) from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise BadMedia(f"the image is over the limit of {limits.pixels:,} pixels") from error
    except Exception as error:  # for a damaged header, decoders raise many kinds of exceptions
        raise BadMedia(f"the image's header is damaged ({error})") from error
    limits.check_pixels(*image.size)
    scans = _scans(data, decoding) if image.format in ("JPEG", "MPO") else 1
    allowed = min(MAX_SCANS, MAX_SCANNED_PIXELS // (image.width * image.height))
    if scans > allowed:
        raise BadMedia(f"the JPEG takes more than {allowed} passes to decode; save it again")
    return Opened(image, memory_of(image, scans))


def _canvases(data: bytes, limits: MediaLimits, decoding: Decoding) -> AbstractContextManager[None]:
    """Hold memory while a WebP image is opened, which allocates its canvases. Raises BadMedia for a too large image."""
    if (size := webp_size(data)) is None:
        return nullcontext()
    limits.check_pixels(*size)
    return decoding.holding(size[0] * size[1] * (_RGB_BYTES + _DECODER_BYTES["WEBP"]))


def memory_of(image: PIL.Image.Image, scans: int = 1) -> int:
    """Most bytes that decoding an image and converting it to RGB need.

    scans: number of passes of a JPEG
    """
    decoder = _DECODER_BYTES.get(image.format or "", 0)
    if scans > 1:
        decoder = _COEFFICIENT_BYTES * len(image.getbands())
    tags = getattr(image, "tag_v2", {})
    tile = _integer(tags.get(_TILE_WIDTH)) * _integer(tags.get(_TILE_LENGTH)) * _TILE_BYTES
    stored = _STORED_BYTES.get(image.mode, _RGB_BYTES)
    return image.width * image.height * (stored + max(decoder, _RGB_BYTES)) + tile


def lock_of(image: PIL.Image.Image) -> threading.Lock:
    """The lock under which an image of a caller is decoded, in any request and any model.

    PIL decodes an open file when its pixels are first asked for. Of two threads, one would get half of the pixels.
    """
    return _LOCKS[id(image) // 64 % len(_LOCKS)]


def to_rgb(image: PIL.Image.Image, limits: MediaLimits) -> PIL.Image.Image:
    """Decode an image of any mode to upright RGB, with transparent parts over white.

    Raises BadMedia for an image that is over `limits.pixels` or cannot be decoded to its end.
    """
    limits.check_pixels(*image.size)
    try:
        image.load()
    except Exception as error:  # for damaged data, decoders raise many kinds, from OSError to SyntaxError
        raise BadMedia(f"the image is truncated or damaged ({error}); send the whole file") from error
    try:
        return _upright_rgb(image)
    except (ValueError, OSError) as error:
        raise BadMedia(f"an image of mode {image.mode} cannot be converted to RGB ({error})") from error


def resize(
    image: PIL.Image.Image, factor: int, min_pixels: int, max_pixels: int, least_side: int = 1
) -> PIL.Image.Image:
    """Resize an image to the size that `fit` gives. Raises BadMedia as `fit`."""
    height, width = fit(image.height, image.width, factor, min_pixels, max_pixels, least_side)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def resize_memory(image: PIL.Image.Image, factor: int, min_pixels: int, max_pixels: int, least_side: int = 1) -> int:
    """Most bytes that `resize` needs for an image before or after it is turned upright. Raises as `fit`.

    The result counts twice, as an image and as an array.
    """
    height, width = fit(image.height, image.width, factor, min_pixels, max_pixels, least_side)
    return _RGB_BYTES * (max(width * image.height, height * image.width) + 2 * width * height)


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert band by band, so that never more than two whole images are in memory. Raises ValueError and OSError."""
    turn = _TURNS.get(_orientation(image))
    if turn is None and image.mode == "RGB" and not image.has_transparency_data:
        return image
    is_grey_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not is_grey_16:
        raise ValueError("32-bit samples do not define white; save the image with 8 or 16 bits per channel")
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
    except Exception:  # unreadable metadata means no orientation
        return 0


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _flatten(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = PIL.Image.new("RGB", image.size, _WHITE)
        white.paste(layered, mask=layered.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_16_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert 16-bit grey to RGB by its high byte, as Pillow does for 16-bit colour."""
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[samples == transparent] = 255
    return PIL.Image.fromarray(grey).convert("RGB")


def _scans(data: bytes, decoding: Decoding) -> int:
    """Number of scans of the (first) image of a JPEG, counted from marker to marker (ITU-T T.81, annex B)."""
    at, scans = 2, 0
    while (marker := _JPEG_MARKER.search(data, at)) and (kind := data[marker.end() - 1]) != _JPEG_END:
        decoding.go_on()
        scans += kind == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _not_an_image(data: bytes, decoding: Decoding) -> str:
    """The error for a file that is not an image. It quotes no content, because only the server may read the file."""
    kind = unsupported_image(data, decoding.go_on)
    if kind == "AVIF":
        return "the AVIF image is truncated, damaged or of an unsupported kind; convert it to JPEG or PNG"
    if kind is not None:
        return f"images of this kind are not supported ({kind}); convert it to JPEG or PNG"
    if container_of(data) in ("mov", "matroska"):
        return "this is a video, not an image; send it as a video part"
    return f"this file of {len(data):,} bytes is not an image; {', '.join(FORMATS)} are supported"
