"""Limits on media, and the error for media that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAME_RATE = 240
"""Most frames per second of a video file. With `MediaLimits.video_seconds`, this limits the number of frames."""


class BadMedia(ValueError):
    """An image or video cannot be fetched or read, or breaks a limit.

    The text of the error does not say where in the request the image or video is; the loader adds the field.
    """


class NotRead(BadMedia):
    """A file is not an image or a video, or has an unsupported format."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Limits on media. The error for each limit names it.

    parts: images and videos in a request, query and documents together
    image_bytes, video_bytes: the size of a file in bytes, as fetched and after its content encoding is decoded
    pixels: width x height of an image, or of a video's frames, before resizing
    video_seconds: the length of a video; a list of frames counts as two frames a second
    video_pixels: pixels of all frames of a video that are decoded to reach the sampled ones
    memory: bytes for the media of all requests. A quarter is for encoded files, three eighths for decoding, and three
        eighths for resized pixels until they are scored. A request may use all of a share. If a share is used up,
        requests wait in order
    decode_timeout: seconds to decode one image or video; waiting for memory does not count
    redirects: the most redirects of one URL
    timeout: seconds to fetch one URL, redirects included; waiting for memory does not count
    """

    parts: int = 256
    image_bytes: int = 32 << 20
    video_bytes: int = 256 << 20
    pixels: int = 80_000_000
    video_seconds: float = 600.0
    video_pixels: int = 3840 * 2160 * 30 * 300
    memory: int = 2 << 30
    decode_timeout: float = 60.0
    redirects: int = 5
    timeout: float = 30.0

    @property
    def video_frames(self) -> int:
        """The most frames of a video file, sampled or not."""
        return int(self.video_seconds * MAX_FRAME_RATE)

    @property
    def file_memory(self) -> int:
        """Bytes for the encoded files of all requests."""
        return self.memory // 4

    @property
    def decode_memory(self) -> int:
        """Bytes for decoding, for all requests."""
        return self.memory * 3 // 8

    @property
    def pixel_memory(self) -> int:
        """Bytes for the resized pixels of all requests, three bytes for each pixel."""
        return self.memory * 3 // 8

    def check_pixels(self, width: int, height: int) -> None:
        """Raise BadMedia if width x height is over `pixels`."""
        if width * height > self.pixels:
            raise BadMedia(
                f"{width} x {height} is {width * height:,} pixels, over the limit of {self.pixels:,}; "
                "send a smaller image or raise the server's pixel limit"
            )


def megabytes(count: int) -> str:
    """A number of bytes as text for an error: `1.5 MiB`, or `100 bytes` if it is below 0.1 MiB."""
    return f"{count / (1 << 20):.1f} MiB" if count > (1 << 20) // 10 else f"{count:,} bytes"


def over_bytes(limit: int) -> BadMedia:
    """The error for a file whose size is over `limit` bytes."""
    return BadMedia(f"the file is over the limit of {megabytes(limit)}; send a smaller file or raise the limit")
