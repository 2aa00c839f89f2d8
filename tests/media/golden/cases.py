"""The pictures and videos of the golden files, for the script that made them and the tests that read them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import PIL.Image

from tests.media.patterns import pattern, scene

FOLDER = Path(__file__).parent
STRIDE = 17

IMAGES: dict[str, tuple[str, int, int]] = {
    "tiny": ("RGB", 10, 10),
    "one-pixel": ("RGB", 1, 1),
    "exact": ("RGB", 320, 256),
    "odd": ("RGB", 333, 777),
    "half-way": ("RGB", 80, 112),
    "wide": ("RGB", 2000, 100),
    "ratio-200": ("RGB", 1000, 5),
    "large": ("RGB", 4000, 3000),
    "just-over": ("RGB", 1361, 1361),
    "alpha": ("RGBA", 211, 97),
    "grey": ("L", 150, 90),
    "cmyk": ("CMYK", 120, 200),
}
"""Mode, width and height."""

LISTS: dict[str, tuple[int, int, int]] = {
    "pair": (2, 320, 256),
    "single": (1, 300, 200),
    "odd": (5, 333, 211),
    "many": (70, 96, 64),
    "large": (3, 1900, 1100),
    "tiny": (4, 20, 30),
    "capped": (40, 400, 400),
    "long-strip": (3, 30, 900),
}
"""Frames, width and height."""

FILES: dict[str, dict[str, float]] = {
    "film.mp4": {},
    "film.webm": {},
    "turned.mp4": {},
    "lossless.mov": {"fps": 2.5, "max_frames": 7},
    "short.mp4": {"fps": 0.2},
    "wide.mp4": {},
}
"""Arguments beside the authors' own."""


def image(name: str) -> PIL.Image.Image:
    mode, width, height = IMAGES[name]
    pixels = pattern(width, height, seed=len(name), channels=len(PIL.Image.new(mode, (1, 1)).getbands()))
    return PIL.Image.frombytes(mode, (width, height), pixels.tobytes())


def frames(name: str) -> list[PIL.Image.Image]:
    count, width, height = LISTS[name]
    return [PIL.Image.fromarray(pattern(width, height, seed)) for seed in range(count)]


def write_files() -> None:
    """Encoders differ between versions, so the files themselves are kept beside the golden values."""
    _encode("film.mp4", "libx264", "yuv420p", frames=400, rate="30000/1001", size=(160, 120), options={"g": "48"})
    _encode("film.webm", "libvpx-vp9", "yuv420p", frames=170, rate="24", size=(176, 100), options={"b": "60k"})
    _encode("turned.mp4", "libx264", "yuv420p", frames=60, rate="15", size=(128, 96), rotation=90)
    _encode("lossless.mov", "libx264rgb", "rgb24", frames=31, rate="10", size=(64, 48), options={"crf": "0"})
    _encode("short.mp4", "libx264", "yuv420p", frames=3, rate="25", size=(96, 64))
    # Long and large enough for the total of a list of frames to matter, which is not that of a file.
    _encode("wide.mp4", "libx264", "yuv420p", frames=26, rate="1", size=(1280, 720), options={"crf": "40"})


def _encode(
    name: str,
    codec: str,
    pixel_format: str,
    frames: int,
    rate: str,
    size: tuple[int, int],
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> None:
    with av.open(str(FOLDER / name), "w") as file:
        stream = file.add_stream(codec, rate=Fraction(rate), options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        if rotation:
            stream.set_display_rotation(rotation)
        for time in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(scene(*size, time), format="rgb24")))
        file.mux(stream.encode())
