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
    """Upper bounds on media. Each has an error of its own that names it.

    parts: images and videos in a request, query and documents together
    image_bytes, video_bytes: size of one file, as fetched and after any content encoding is undone
    pixels: width x height of an image, or of a video's frames, before anything is decoded
    video_seconds: length of a video, sampled or not; a list of frames counts as two a second
    video_pixels: of all frames of a video that are decoded on the way to those that are shown
    memory: bytes that the media of all requests take at a time. A quarter is for files that are not decoded yet,
        three eighths for decoding, and three eighths for what models are shown, until it is scored; a request
        may have all of a share. Whoever comes when a share is used up waits in order.
    decode_timeout: seconds for decoding one image or video; waiting for memory does not count
    redirects: hops that one URL may take
    timeout: seconds for fetching one URL, redirects included; waiting for memory does not count
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
        """Frames in a video file, sampled or not."""
        return int(self.video_seconds * MAX_FRAME_RATE)

    @property
    def file_memory(self) -> int:
        """Bytes of files of all requests that are not decoded yet."""
        return self.memory // 4

    @property
    def decode_memory(self) -> int:
        """Bytes that decoding takes for all requests."""
        return self.memory * 3 // 8

    @property
    def shown_memory(self) -> int:
        """Bytes of what models are shown for all requests, three a pixel."""
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
