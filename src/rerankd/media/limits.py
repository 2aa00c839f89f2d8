"""Limits on media, and the error for media that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAME_RATE = 240
"""Frames a second above which a video is not a video: bounds the frames that `MediaLimits.video_seconds` lets in."""


class BadMedia(ValueError):
    """A picture or video that cannot be fetched, read or shown to a model.

    `str()` of it is a sentence without a subject's place in the request; the loader adds the field.
    """


class NotRead(BadMedia):
    """A file that is no picture or video, or of a kind that is not supported."""


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
    def shown_memory(self) -> int:
        """Bytes for the resized pixels of all requests, three a pixel."""
        return self.memory * 3 // 8

    def check_pixels(self, width: int, height: int) -> None:
        """Raises BadMedia for a picture of width x height that is over `pixels`."""
        if width * height > self.pixels:
            raise BadMedia(
                f"{width} x {height} is {width * height:,} pixels, over the limit of {self.pixels:,}; "
                "send a smaller picture or raise the server's pixel limit"
            )


def megabytes(count: int) -> str:
    """A byte count for an error: `1.5 MiB`, or plain bytes below a tenth of one."""
    return f"{count / (1 << 20):.1f} MiB" if count > (1 << 20) // 10 else f"{count:,} bytes"


def over_bytes(limit: int) -> BadMedia:
    """The error for a file whose size is over `limit` bytes."""
    return BadMedia(f"the file is over the limit of {megabytes(limit)}; send a smaller file or raise the limit")
