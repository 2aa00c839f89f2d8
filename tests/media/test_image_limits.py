"""What pictures may cost: pixels, passes and memory, and what is said of damaged ones."""

from __future__ import annotations

import contextlib
import re
import struct
import threading
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.media import images
from rerankd.media.budget import Budget
from rerankd.media.containers import webp_size
from rerankd.media.decoding import Decoding
from rerankd.media.images import FORMATS, open_image, to_rgb
from rerankd.media.limits import BadMedia, MediaLimits
from tests.media.patterns import pattern
from tests.media.test_images import LIMITS, decoding, encoded, opened, png


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [1, *range(2, 9)])
def test_bands_join_without_a_seam(mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made RGB and turned in bands of three rows, a picture is as it is in one."""
    if mode == "I;16":
        image = PIL.Image.fromarray(pattern(31, 17, channels=2).view(np.uint16)[..., 0])
    else:
        image = PIL.Image.fromarray(pattern(31, 17, channels=4), "RGBA").convert(mode)
    image.getexif()[0x0112] = orientation
    whole = np.asarray(to_rgb(image, LIMITS))
    monkeypatch.setattr(images, "_BAND_PIXELS", 31 * 3)
    assert np.array_equal(np.asarray(to_rgb(image, LIMITS)), whole)


def test_memory_is_held_for_what_decoding_takes() -> None:
    """At least a picture as it is stored, and as RGB; decoders that hold more of it are counted with more."""
    pixels = pattern(100, 50, channels=4)
    image = PIL.Image.fromarray(pixels, "RGBA").convert("RGB")
    need = {form: memory(encoded(image, form)) for form in FORMATS}
    assert need == {"JPEG": 8, "PNG": 8, "WEBP": 16, "GIF": 5, "BMP": 8, "TIFF": 12, "AVIF": 24}
    assert memory(encoded(image, "JPEG", progressive=True)) == 10
    assert memory(encoded(image.convert("CMYK"), "JPEG", progressive=True)) == 12
    assert memory(encoded(image.convert("L"), "PNG")) == 5


def memory(data: bytes) -> float:
    """Bytes a pixel."""
    opened, need = open_image(data, LIMITS, decoding())
    return need / (opened.width * opened.height)


def test_a_tiff_of_large_tiles_is_counted_with_them() -> None:
    directory = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1)]
    directory += [(322, 50_000), (323, 40_000), (324, 8), (325, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in directory)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(directory)) + entries + b"\0\0\0\0"
    assert open_image(data, LIMITS, decoding()).memory > 50_000 * 40_000


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (b"VP8X", b"\0\0\0\0" + (16_382).to_bytes(3, "little") + (9_999).to_bytes(3, "little")),
        (b"VP8L", b"\x2f" + (16_382 | 9_999 << 14).to_bytes(4, "little")),
        (b"VP8 ", b"\0\0\0\x9d\x01\x2a" + (16_383 | 10_000 << 16).to_bytes(4, "little")),
    ],
)
def test_a_large_webp_is_not_even_opened(kind: bytes, header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening one takes eight bytes a pixel."""
    monkeypatch.setattr(PIL.Image, "open", lambda *_, **__: pytest.fail("it is opened"))
    with pytest.raises(BadMedia, match="16383 x 10000 is 163,830,000 pixels, over the limit"):
        open_image(b"RIFF\x64\0\0\0WEBP" + kind + b"\x40\0\0\0" + header + bytes(64), MediaLimits(), decoding())


def test_a_webp_that_takes_more_memory_than_there_is_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(PIL.Image.fromarray(pattern(70, 30)), "WEBP")
    closing = threading.Event()
    assert open_image(data, LIMITS, Decoding(Budget(70 * 30 * 16, "decoding"), 60.0, closing)).image.size == (70, 30)
    monkeypatch.setattr(PIL.Image, "open", lambda *_, **__: pytest.fail("it is opened"))
    with pytest.raises(BadMedia, match="of memory, over the limit"):
        open_image(data, LIMITS, Decoding(Budget(70 * 30 * 16 - 1, "decoding"), 60.0, closing))


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {}, {"save_all": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}]
)
def test_the_canvas_of_a_webp_is_read_as_pillow_reads_it(options: dict[str, Any]) -> None:
    frames = [PIL.Image.fromarray(pattern(70, 30, seed)) for seed in (1, 2)]
    more = {"append_images": frames[1:]} if "save_all" in options else {}
    assert webp_size(encoded(frames[0], "WEBP", **options, **more)) == (70, 30)
    assert webp_size(encoded(frames[0], "PNG")) is None


def test_passes_over_a_large_jpeg_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_SCANNED_PIXELS", 64 * 48 * 20)
    assert opened(progressive(20)).shape == (48, 64, 3)
    with pytest.raises(BadMedia, match="more than 20 passes"):
        opened(progressive(21))


def test_errors_tell_nothing_of_a_file() -> None:
    with pytest.raises(BadMedia) as caught:
        opened(b"password=hunter2")
    assert "hunter" not in str(caught.value)
    assert "password" not in str(caught.value)
    assert "of 16 bytes" in str(caught.value)


def test_formats_beyond_the_list_are_not_even_tried() -> None:
    with pytest.raises(BadMedia, match="not an image"):
        opened(encoded(PIL.Image.new("RGB", (8, 8)), "PPM"))


def test_a_video_as_an_image_says_so() -> None:
    with pytest.raises(BadMedia, match="this is a video, not an image; send it as a video part"):
        opened(b"\0\0\0\x18ftypmp42\0\0\0\0")


def test_pixels_are_counted_before_decoding() -> None:
    # The file holds no pixels at all: only its header can have been read.
    with pytest.raises(BadMedia, match=r"9000 x 9000 is 81,000,000 pixels, over the limit of 80,000,000"):
        opened(png(9000, 9000, 8, 2, b""))


def test_a_bomb_that_pillow_itself_refuses() -> None:
    with pytest.raises(BadMedia, match="over the limit of 80,000,000 pixels"):
        opened(png(60_000, 60_000, 8, 2, b""))


def test_the_pixel_limit_lets_exactly_itself_through() -> None:
    data = encoded(PIL.Image.new("RGB", (20, 10)), "PNG")
    assert opened(data, MediaLimits(pixels=200)).shape == (10, 20, 3)
    with pytest.raises(BadMedia, match="over the limit of 199"):
        opened(data, MediaLimits(pixels=199))


def test_the_pixel_limit_holds_for_pil_images() -> None:
    with pytest.raises(BadMedia, match="over the limit of 199"):
        to_rgb(PIL.Image.new("RGB", (20, 10)), MediaLimits(pixels=199))


def progressive(scans: int, before: bytes = b"", between: bytes = b"", behind: bytes = b"") -> bytes:
    """A JPEG of so many passes, the last one over and over; `before` is a segment of its header."""
    data = encoded(PIL.Image.fromarray(pattern(64, 48)), "JPEG", progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", data)]
    last = data[starts[-1] : -2]
    return data[:2] + before + data[2:-2] + (between + last) * (scans - len(starts)) + data[-2:] + behind


def test_a_jpeg_of_endless_passes_is_refused() -> None:
    assert opened(progressive(100)).shape == (48, 64, 3)
    for between in (b"", b"\xff\x01", b"\xff\xd0", b"\xff\xff"):
        with pytest.raises(BadMedia, match="more than 100 passes"):
            opened(progressive(101, between=between))


def test_what_lies_beside_a_jpegs_passes_is_not_taken_for_one() -> None:
    look_alikes = b"\xff\xda\0\2" * 500
    comment = b"\xff\xfe" + (len(look_alikes) + 2).to_bytes(2, "big") + look_alikes
    assert opened(progressive(100, before=comment, behind=look_alikes)).shape == (48, 64, 3)


@settings(max_examples=150)
@given(
    form=st.sampled_from(FORMATS),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_a_picture_or_refused(form: str, flips: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(PIL.Image.fromarray(pattern(24, 16, channels=3)), form))
    for at, value in flips:
        data[at % len(data)] = value
    with contextlib.suppress(BadMedia):
        assert opened(bytes(data), MediaLimits(pixels=1_000_000)).shape[2] == 3
