"""vLLM's videos as a list of pictures in one `data:` URL."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image
import pytest

from rerankd.core import Video
from rerankd.media.limits import MediaLimits
from tests.media import films
from tests.media.patterns import pattern
from tests.media.pictures import PICTURE
from tests.media.test_loader import load, refused, request


def jpeg(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pattern(*size, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


def frames_uri(*frames: bytes, kind: str = "video/jpeg") -> str:
    return f"data:{kind};base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)


@pytest.mark.parametrize(("count", "max_frames"), [(1, 64), (2, 64), (5, 64), (20, 7)])
def test_vllms_list_of_jpegs_is_the_list_of_frames(count: int, max_frames: int) -> None:
    files = [jpeg(seed) for seed in range(count)]
    pictures = [PIL.Image.open(io.BytesIO(file)) for file in files]
    parts = [Video(source, max_frames=max_frames) for source in (frames_uri(*files), pictures)]
    joined, listed = load(request(tuple(parts))).documents[0]
    assert joined.digest == listed.digest
    assert joined.seconds == listed.seconds
    assert joined.seconds[0] == 0.25
    assert np.array_equal(joined.frames, listed.frames)


@pytest.mark.parametrize("kind", ["Video/JPEG", "video/jpeg;charset=binary"])
def test_vllms_list_in_other_spelling(kind: str) -> None:
    files = [jpeg(1), jpeg(2)]
    (loaded,) = load(request((Video(frames_uri(*files, kind=kind)),))).documents[0]
    assert loaded.seconds == (0.25,)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        (frames_uri(), "frame 0: the data: URI is empty"),
        (frames_uri(jpeg(1)) + ",", "frame 1: the data: URI is empty"),
        (frames_uri(jpeg(1), b"text"), "frame 1: this file of 4 bytes is not an image"),
        (frames_uri(jpeg(1), jpeg(1)[:400]), "frame 1: the image's header is damaged (Truncated File Read)"),
        (frames_uri(jpeg(1), jpeg(1, (300, 64))), "frame 1 has another size than frame 0"),
        (frames_uri(films.film(films.MP4)), "frame 0: this is a video, not an image"),
        ("data:video/jpeg;base64," + 1200 * ",", "the list holds 1,201 frames, over the limit of 1,200"),
        (frames_uri(jpeg(1), bytes(1 << 20)), "frame 1: the file is over the limit of 1.0 MiB"),
        (frames_uri(jpeg(1), jpeg(2), kind="video/png"), "not valid base64"),
    ],
)
def test_vllms_list_that_cannot_be_read(uri: str, problem: str) -> None:
    error = refused(request((Video(uri),)), limits=MediaLimits(image_bytes=(1 << 20) - 1))
    assert error.field == "documents[0].content[0]"
    assert problem in error.problem


def test_the_limit_for_listed_frames_is_that_for_seconds() -> None:
    what = request((Video([PICTURE] * 9),))
    assert len(load(what, limits=MediaLimits(video_seconds=4.5)).documents[0][0].frames) == 10
    assert "9 frames, over the limit of 8" in refused(what, limits=MediaLimits(video_seconds=4.0)).problem
