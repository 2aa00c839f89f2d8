"""Videos made for a test: encoded by PyAV, with what the test needs to go wrong or be told apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

from tests.media.patterns import Pixels, scene

Codec = tuple[str, str, str]
"""Container, encoder and pixel format."""

MP4: Codec = ("mp4", "libx264", "yuv420p")
WEBM: Codec = ("webm", "libvpx-vp9", "yuv420p")
WEBM_VP8: Codec = ("webm", "libvpx", "yuv420p")
MATROSKA: Codec = ("matroska", "libx264", "yuv420p")
MOV: Codec = ("mov", "libx264rgb", "rgb24")
GIF: Codec = ("gif", "gif", "rgb8")
MOV_ALPHA: Codec = ("mov", "png", "rgba")


def film(
    codec: Codec,
    frames: Sequence[Pixels] | int = 20,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    rotation: int = 0,
    **options: str,
) -> bytes:
    """A video file. `times` are in ticks of 1 / rate seconds, one for each frame; by default 0, 1, 2, ..."""
    container, encoder, pixel_format = codec
    pictures = [scene(*size, time) for time in range(frames)] if isinstance(frames, int) else frames
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if rotation:
            stream.set_display_rotation(rotation)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def sound(container: str = "mp4") -> bytes:
    """A file with an audio track alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream("aac" if container == "mp4" else "libopus", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9600), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def every_frame(data: bytes) -> list[Pixels]:
    """All frames in order, decoded in the plainest way there is."""
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
