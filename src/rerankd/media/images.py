"""Pictures: from a file's bytes to RGB, and from RGB to the size that the model is shown.

Where the authors' code is particular (alpha over white, PIL's bicubic), this does the same. Beyond it, EXIF
orientation is honoured, 16 bits are scaled and not clipped, and alpha goes over white in every mode that
has it, so that one picture looks the same in every encoding.
"""

from __future__ import annotations

import io
import re

import numpy as np
import PIL.Image
import PIL.ImageOps

from rerankd.media.containers import container_of
from rerankd.media.limits import BadMedia, Limits
from rerankd.media.sizing import fit

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

MAX_SCANS = 100
"""Passes over the whole picture that a JPEG may take; encoders make about ten."""

_WHITE = (255, 255, 255)
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker that a length follows, or the end."""
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9


def open_image(data: bytes, limits: Limits) -> PIL.Image.Image:
    """The (first) picture in a file, decoded, in RGB.

    Raises BadMedia for what is not one of `FORMATS`, is over `limits.pixels` or `MAX_SCANS` (before anything is
    decoded), or cannot be decoded to its end.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise BadMedia(_not_an_image(data)) from error
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise BadMedia(f"the picture is over the limit of {limits.pixels:,} pixels") from error
    except Exception as error:  # a damaged header can make a decoder raise anything
        raise BadMedia(f"the picture's header is damaged ({error})") from error
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise BadMedia(f"the JPEG takes more than {MAX_SCANS} passes to decode; save it anew")
    return to_rgb(image, limits)


def to_rgb(image: PIL.Image.Image, limits: Limits) -> PIL.Image.Image:
    """A picture of any mode as upright RGB, transparent parts white. Raises BadMedia as `open_image` does."""
    limits.check_pixels(*image.size)
    try:
        image.load()
    except Exception as error:  # decoders of damaged data raise anything from OSError to SyntaxError
        raise BadMedia(f"the picture is truncated or damaged ({error}); send the whole file") from error
    try:
        return _flatten(_upright(image))
    except (ValueError, OSError) as error:
        raise BadMedia(f"a picture of mode {image.mode} cannot be shown as RGB ({error})") from error


def resize(image: PIL.Image.Image, factor: int, min_pixels: int, max_pixels: int) -> PIL.Image.Image:
    """The picture with sides that are multiples of `factor`, within the pixel bounds. Raises BadMedia as `fit`."""
    height, width = fit(image.height, image.width, factor, min_pixels, max_pixels)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # metadata that cannot be read says nothing about orientation
        return image


def _flatten(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples name no white level; save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = PIL.Image.new("RGB", image.size, _WHITE)
        paper.paste(layered, mask=layered.getchannel("A"))
        return paper
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 16 bits by its high byte, as Pillow itself reads colour of 16 bits."""
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[samples == clear] = 255
    return PIL.Image.fromarray(grey).convert("RGB")


def _scans(data: bytes) -> int:
    """Scans of a JPEG's (first) picture, counted from marker to marker as decoders go (ITU-T T.81, annex B)."""
    at, scans = 2, 0
    while (marker := _JPEG_MARKER.search(data, at)) and (kind := data[marker.end() - 1]) != _JPEG_END:
        scans += kind == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _not_an_image(data: bytes) -> str:
    if container_of(data) in ("mov", "matroska"):
        return "this is a video, not an image; send it as a video part"
    return f"this is not an image; {', '.join(FORMATS)} are read, and it begins with {data[:12]!r}"
