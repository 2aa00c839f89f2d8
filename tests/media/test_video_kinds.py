"""Which files are videos, and what is said of the others."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest

from rerankd.media.limits import BadMedia, NotRead
from tests.media import films
from tests.media.films import film
from tests.media.patterns import scene
from tests.media.test_videos import read


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF....WAVE",
        b"<html>secret</html>",
    ],
)
def test_only_three_containers_are_read(data: bytes) -> None:
    with pytest.raises(NotRead, match="not a video; MP4, QuickTime, WebM and GIF are supported") as caught:
        read(data)
    assert f"of {len(data)} bytes" in str(caught.value)
    assert not data or data[:6].decode() not in str(caught.value), "nothing of the file itself is told"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"RIFF....AVI LIST", "AVI"),
        (b"FLV\x01\x05", "Flash"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6", "Windows Media"),
        (b"\0\0\1\xba\x44", "MPEG"),
        (b"\x47" * 188 * 4, "MPEG transport stream"),
        (b"OggS\0", "Ogg"),
    ],
)
def test_other_kinds_of_film_say_what_to_do(data: bytes, kind: str) -> None:
    with pytest.raises(NotRead, match=rf"of this kind are not supported \({kind}\); re-encode it as MP4 or WebM"):
        read(data)


def saved(form: str, frames: int = 1, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    pictures = [PIL.Image.new("RGB", size, colour) for colour in ("red", "lime", "blue", "white")][:frames]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, form, **more, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("brands", [b"avifmif1miaf", b"mif1avif", b"isomavif"])
def test_an_avif_picture_is_no_film(brands: bytes) -> None:
    data = saved("AVIF").replace(
        b"ftypavif\0\0\0\0avifmif1miafMA1B", b"ftyp" + brands[:4] + b"\0\0\0\0" + 4 * brands[-4:]
    )
    with pytest.raises(NotRead, match=r"a still image \(AVIF\), not a video; send it as an image part"):
        read(data)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [(b"heicmif1", "HEIF"), (b"mif1heic", "HEIF"), (b"crx isom", "camera raw"), (b"isomisom", "in a")],
)
def test_pictures_in_other_iso_files_are_no_film(brands: bytes, kind: str) -> None:
    """The very bytes that libavformat would read as a film of one frame."""
    data = saved("AVIF").replace(b"ftypavif\0\0\0\0avifmif1miafMA1B", b"ftyp" + brands[:4] + b"\0\0\0\0" + brands * 2)
    with pytest.raises(NotRead, match=rf"a still image \({kind}.*, not a video; convert it to JPEG or PNG and send it"):
        read(data)


@pytest.mark.parametrize("brand", [b"avis", b"msf1", b"hevc"])
def test_a_sequence_of_pictures_is_a_film(brand: bytes) -> None:
    frames, seconds = read(saved("AVIF", 4, quality=100, duration=500).replace(b"ftypavis", b"ftyp" + brand))
    assert len(seconds) == 2
    shown = [frame[32, 32].astype(int) for frame in frames]
    for pixel, expected in zip(shown, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], strict=True):
        assert np.abs(pixel - expected).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animated_pictures_are_no_films(form: str) -> None:
    with pytest.raises(NotRead, match=f"an animated {form} is not read as a video; send it as GIF, MP4 or WebM"):
        read(saved(form, 3))


@pytest.mark.parametrize("form", ["ICO", "JPEG2000"])
def test_other_pictures_are_no_films(form: str) -> None:
    with pytest.raises(NotRead, match="not a video; convert it to JPEG or PNG and send it as an image part"):
        read(saved(form))


@pytest.mark.parametrize("tail", [b"", film(films.MP4)])
def test_a_photo_is_no_film_and_a_motion_photo_neither(tail: bytes) -> None:
    with pytest.raises(NotRead, match="this is an image, not a video; send it as an image part"):
        read(saved("JPEG") + tail)


def test_a_still_in_a_quicktime_film_stands_alone() -> None:
    frames, seconds = read(film(films.MOV, frames=1, size=(64, 64), crf="0"))
    assert (len(frames), seconds) == (1, (0.0,))
    assert np.array_equal(frames[0], scene(64, 64, 0))


def test_an_image_as_a_video_says_so() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(BadMedia, match="this is an image, not a video; send it as an image part"):
        read(buffer.getvalue())
