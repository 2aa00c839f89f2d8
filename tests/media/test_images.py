"""Pictures as pixels: formats, modes, orientation, and files that are no pictures."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from rerankd.media.budget import Budget
from rerankd.media.decoding import Decoding
from rerankd.media.images import FORMATS, open_image, to_rgb
from rerankd.media.limits import BadMedia, MediaLimits, NotRead
from tests.media import films
from tests.media.patterns import Pixels, pattern

LIMITS = MediaLimits()


def encoded(image: PIL.Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoding() -> Decoding:
    return Decoding(Budget(LIMITS.decode_memory, "decoding"), 60.0, threading.Event())


def opened(data: bytes, limits: MediaLimits = LIMITS) -> Pixels:
    image = to_rgb(open_image(data, limits, decoding()).image, limits)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: Pillow writes no colour of 16 bits, and no header that lies."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_give_their_pixels_back(form: str) -> None:
    pixels = pattern(61, 43)
    assert np.array_equal(opened(encoded(PIL.Image.fromarray(pixels), form, **LOSSLESS[form])), pixels)


def test_jpeg_gives_nearly_its_pixels_back() -> None:
    y, x = np.mgrid[0:64, 0:64]
    smooth = np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)
    apart = opened(encoded(PIL.Image.fromarray(smooth), "JPEG", quality=95)).astype(int) - smooth
    assert np.abs(apart).mean() < 3


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(form: str) -> None:
    films = [PIL.Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    more = {"lossless": True} if form == "WEBP" else {}
    data = encoded(films[0], form, save_all=True, append_images=films[1:], **more)
    assert (opened(data) == (255, 0, 0)).all()


# What each EXIF orientation asks of a viewer, as array operations.
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(form: str, orientation: int) -> None:
    pixels = pattern(31, 17)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PIL.Image.fromarray(pixels), form, exif=exif, **LOSSLESS[form])
    assert np.array_equal(opened(data), UPRIGHT[orientation](pixels))


def test_exif_orientation_of_a_jpeg_changes_its_shape() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert opened(encoded(PIL.Image.new("RGB", (40, 20)), "JPEG", exif=exif)).shape == (40, 20, 3)


def test_unreadable_exif_does_not_refuse_the_picture() -> None:
    pixels = pattern(12, 8)
    assert np.array_equal(opened(encoded(PIL.Image.fromarray(pixels), "PNG", exif=b"nonsense")), pixels)


def over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None].astype(float) / 255
    return (colour * share + 255 * (1 - share)).round().astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_alpha_goes_over_white(form: str) -> None:
    pixels = pattern(40, 30, channels=4)
    if form == "WEBP":
        pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 128)  # clear pixels lose their colour there
    result = opened(encoded(PIL.Image.fromarray(pixels, "RGBA"), form, **LOSSLESS[form])).astype(int)
    assert np.abs(result - over_white(pixels[..., :3], pixels[..., 3])).max() <= 1


def test_grey_with_alpha_goes_over_white() -> None:
    pixels = pattern(40, 30, channels=2)
    result = opened(encoded(PIL.Image.fromarray(pixels, "LA"), "PNG")).astype(int)
    assert np.abs(result - over_white(pixels[..., :1].repeat(3, 2), pixels[..., 1])).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_clear_palette_entry_is_white(form: str) -> None:
    image = PIL.Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    result = opened(encoded(image, form, transparency=1))
    assert result.tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_a_palette_without_clear_entries_keeps_its_colours() -> None:
    image = PIL.Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert opened(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_black_and_white() -> None:
    image = PIL.Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert opened(encoded(image, "PNG")).tolist() == [[[0] * 3, [255] * 3]]


def test_cmyk() -> None:
    image = PIL.Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert opened(encoded(image, "TIFF"))[0, 0].tolist() == [0, 255, 255]
    red, green, blue = opened(encoded(image, "JPEG", quality=95))[8, 8].tolist()
    assert red < 10
    assert min(green, blue) > 245


SAMPLES_16 = np.array([[0, 255, 256, 0x1234, 0x80FF, 0xFFFF]], dtype=np.uint16)
HIGH_BYTES = [0, 0, 1, 0x12, 0x80, 0xFF]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(form: str) -> None:
    result = opened(encoded(PIL.Image.fromarray(SAMPLES_16), form))
    assert result.tolist() == [[[level] * 3 for level in HIGH_BYTES]]


def test_clear_grey_of_16_bits_is_white() -> None:
    rows = b"\0" + SAMPLES_16.astype(">u2").tobytes()
    data = png(6, 1, 16, 0, rows, (b"tRNS", b"\x12\x34"))
    assert opened(data)[0, :, 0].tolist() == [0, 0, 1, 255, 0x80, 0xFF]


def test_colour_of_16_bits_is_scaled() -> None:
    rows = b"\0" + SAMPLES_16.astype(">u2").tobytes()
    assert opened(png(2, 1, 16, 2, rows)).tolist() == [[HIGH_BYTES[:3], HIGH_BYTES[3:]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_refused(mode: str) -> None:
    with pytest.raises(BadMedia, match="32-bit samples"):
        opened(encoded(PIL.Image.new(mode, (4, 4)), "TIFF"))


def test_a_pil_image_is_left_as_it_was() -> None:
    image = PIL.Image.fromarray(pattern(20, 10, channels=4), "RGBA")
    before = image.tobytes()
    assert to_rgb(image, LIMITS).mode == "RGB"
    assert (image.mode, image.tobytes()) == ("RGBA", before)


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_refused(form: str) -> None:
    data = encoded(PIL.Image.fromarray(pattern(200, 150)), form)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadMedia, match=r"truncated|damaged|not an image"):
            opened(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am a text file", b"<html><svg/></html>", b"%PDF-1.7 ...", b"\0" * 100],
)
def test_not_an_image(data: bytes) -> None:
    with pytest.raises(BadMedia, match=r"not an image; JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF are supported"):
        opened(data)


def iso(*brands: bytes, more: bytes = b"\0\0\0\x08mdat") -> bytes:
    """A file of ISO boxes: its brands, the major one first, and what follows."""
    body = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands)
    return (len(body) + 4).to_bytes(4, "big") + body + more


MOOV = b"\0\0\0\x08moov"

UNREAD = {
    "HEIF": [
        iso(b"heic", b"mif1"),
        iso(b"mif1", b"heic"),
        iso(b"heix"),
        iso(b"isom", b"heic"),
        iso(b"hevc", b"msf1", more=MOOV),
        iso(b"msf1", b"hevc", more=MOOV),
        iso(b"avci"),
    ],
    "camera raw": [iso(b"crx ", b"isom", more=MOOV)],
    "JPEG XL": [b"\xff\x0a\x10", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "JPEG 2000": [encoded(PIL.Image.new("RGB", (8, 8)), "JPEG2000"), b"\xff\x4f\xff\x51\0"],
    "icon": [encoded(PIL.Image.new("RGB", (16, 16)), "ICO")],
    "Photoshop": [b"8BPS\0\1"],
    "SVG": [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?>\n<!-- drawn --><!DOCTYPE svg><svg/>",
    ],
}


@pytest.mark.parametrize(("kind", "data"), [(kind, data) for kind, files in UNREAD.items() for data in files])
def test_pictures_that_are_not_read_say_what_to_do(kind: str, data: bytes) -> None:
    with pytest.raises(NotRead, match=rf"of this kind are not supported \({kind}\); convert it to JPEG or PNG"):
        opened(data)


@pytest.mark.parametrize("brands", [(b"mp42", b"isom"), (b"isom", b"heic"), (b"isom", b"avif"), (b"qt  ",), (b"M4A ",)])
def test_a_film_may_name_a_pictures_brand(brands: tuple[bytes, ...]) -> None:
    with pytest.raises(BadMedia, match="this is a video, not an image; send it as a video part"):
        opened(iso(*brands, more=MOOV))


@pytest.mark.parametrize("frames", [1, 3])
def test_avif_is_a_picture_and_a_sequence_shows_its_first(frames: int) -> None:
    pictures = [PIL.Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")][:frames]
    data = encoded(pictures[0], "AVIF", save_all=frames > 1, append_images=pictures[1:], quality=100)
    assert data[8:12] == (b"avif" if frames == 1 else b"avis")
    assert np.abs(opened(data).astype(int) - (255, 0, 0)).max() <= 2


def test_avif_with_alpha_and_orientation() -> None:
    pixels = np.zeros((32, 64, 4), dtype=np.uint8)
    pixels[:, :32] = (200, 10, 30, 255)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    result = opened(encoded(PIL.Image.fromarray(pixels, "RGBA"), "AVIF", quality=100, exif=exif)).astype(int)
    assert result.shape == (64, 32, 3)
    assert np.abs(result[:30] - (200, 10, 30)).max() < 12
    assert np.abs(result[34:] - 255).max() < 12


def test_a_motion_photo_is_its_photo() -> None:
    still = encoded(PIL.Image.fromarray(pattern(64, 48)), "JPEG")
    assert np.array_equal(opened(still + films.film(films.MP4)), opened(still))
