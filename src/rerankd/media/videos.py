"""Decoding of video files: from the bytes of a file to the sampled frames, each resized as soon as it is decoded."""

from __future__ import annotations

import io
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
import PIL.Image
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rerankd.media.containers import Container, container_of, gif_size, has_tracks, is_cut_short, iso_image, iso_samples
from rerankd.media.decoding import Decoding
from rerankd.media.frames import Pixels, shrink, shrink_memory
from rerankd.media.images import open_image, to_rgb
from rerankd.media.limits import MAX_FRAME_RATE, BadMedia, MediaLimits, NotRead
from rerankd.media.sampling import file_indices, timestamps
from rerankd.media.sizing import FILE_TOTAL_PIXELS, Sizing, fit
from rerankd.media.unread import unsupported_image, unsupported_video

_THREADS = min(4, os.cpu_count() or 1)
"""Threads of one decoder. Each thread holds frames."""
_REFERENCES = 16
"""Most reference frames of a codec."""
_FURTHER_FRAMES = 3
"""Frames that a decoder holds beside reference frames and the frames of its threads."""
_PADDING = 128
"""Most pixels by which a side of a coded frame is longer than the frame's side."""
_MOST_BYTES = 8
"""Bytes of a pixel if the pixel format is unknown: four samples of 16 bits."""
_CONVERTED_BYTES = 3 + 3 + 4 + 4 + 4
"""Bytes for each pixel that the conversion of a frame to upright RGB over white needs."""
_PROBED_PIXELS = 4096 * 2304
"""Most pixels of a frame that libavformat decodes when it opens a file, before memory is reserved for decoding."""
_PROBE_MEMORY = _PROBED_PIXELS * 12
"""Bytes that are reserved while a file is opened."""
_SAMPLES_PER_FRAME = 8
"""Most samples of all tracks, with sound, for each allowed frame of a video, because a demuxer lists all samples."""


class _Key(NamedTuple):
    """A key frame.

    time: presentation time
    seek: the time by which seeking finds the frame: the decoding time, if there is one
    """

    time: int
    seek: int


@dataclass(frozen=True, slots=True)
class _Index:
    """The times of a video's frames, which its packets give without decoding.

    times: presentation times of the frames, ascending, in the stream's time base
    keys: the key frames, at which decoding can begin, ascending; never empty
    rate: frames per second
    """

    times: list[int]
    keys: list[_Key]
    rate: float


def read_video(
    data: bytes,
    factor: int,
    sizing: Sizing,
    fps: float,
    max_frames: int,
    limits: MediaLimits,
    decoding: Decoding,
    claim: Callable[[int], AbstractContextManager[object]],
) -> tuple[Pixels, tuple[float, ...]]:
    """The sampled frames of a video file, uint8 [T, H, W, 3], and the time of each pair of frames in seconds.

    MP4, QuickTime, WebM, Matroska and GIF are supported. Frames are turned upright by the file's display matrix. Each
    frame is resized when it is decoded, so that memory does not grow with the length of the video.

    factor: pixels of a token's side; the frames' sides are multiples of it
    fps, max_frames: see `file_indices`
    claim: returns a context for a number of bytes; entered with the size of all sampled frames before decoding

    Raises NotRead for another kind of file. Raises BadMedia for a file that is cut short, damaged, has no video, is
    over `limits`, or takes more time or memory than `decoding` allows.
    """
    container = container_of(data)
    if container is None:
        raise NotRead(_not_a_video(data, limits, decoding))
    if is_cut_short(data, container, decoding.go_on):
        raise BadMedia("the video is cut short; send the whole file")
    if container == "mov":
        _check_iso(data, limits, decoding)
    try:
        with decoding.holding(_PROBE_MEMORY):
            file = _open(data, container, decoding)
        with file:
            stream = _video_stream(file)
            width, height = gif_size(data) if container == "gif" else (stream.width, stream.height)
            if not width * height:
                raise BadMedia("the video does not give the size of its frames; re-encode it")
            limits.check_pixels(width, height)
            stream.codec_context.options = {"max_pixels": str((width + _PADDING) * (height + _PADDING))}
            stream.codec_context.thread_count = _THREADS
            stream.thread_type = "AUTO"
            index = _index(file, stream, limits, decoding)
            indices = file_indices(len(index.times), index.rate, fps, max_frames)
            low, high = sizing.frame_bounds(len(indices), FILE_TOTAL_PIXELS)
            rows, columns = fit(height, width, factor, low, high)
            sample_times = [index.times[at] for at in indices]
            _check_work(index, sample_times, width * height, limits)
            with claim(len(indices) * rows * columns * 3), decoding.holding(_memory(stream, width, height)):
                frames = _stacked(
                    (
                        shrink(_to_array(frame, limits), factor, low, high)
                        for frame in _decode(file, stream, index, sample_times, limits, decoding)
                    ),
                    len(indices),
                )
    except BadMedia:
        raise
    except (av.FFmpegError, ArithmeticError, LookupError, MemoryError, ValueError) as error:
        raise BadMedia(f"the video cannot be decoded ({type(error).__name__}: {error})") from error
    return frames, timestamps(indices, index.rate)


class _Watched(io.BytesIO):
    """A file in memory whose reads check for cancellation, because nothing else interrupts a demuxer."""

    def __init__(self, data: bytes, decoding: Decoding) -> None:
        super().__init__(data)
        self._decoding = decoding

    def read(self, size: int | None = -1, /) -> bytes:
        self._decoding.go_on()
        return super().read(size)


def _open(data: bytes, container: Container, decoding: Decoding) -> InputContainer:
    # The demuxer is given, not guessed, and the empty list of protocols keeps it from opening other files or URLs.
    options = {"protocol_whitelist": "none", "max_pixels": str(_PROBED_PIXELS)}
    return av.open(_Watched(data, decoding), "r", format=container, options=options, metadata_errors="replace")


def _video_stream(file: InputContainer) -> VideoStream:
    """The video track. Raises BadMedia if there is none; the image of an album's cover does not count."""
    stream = file.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise BadMedia("the file has no video track")
    if stream.codec_context is None:
        raise BadMedia("the video's codec is not known here; re-encode it as H.264, VP9 or AV1")
    return stream


def _check_iso(data: bytes, limits: MediaLimits, decoding: Decoding) -> None:
    """Raise NotRead for an ISO file without a video, and BadMedia for one that lists too many samples."""
    image = iso_image(data, decoding.go_on)
    if image == "camera raw" or not has_tracks(data, decoding.go_on):
        raise NotRead(_still(image or "in a video container"))
    most = _SAMPLES_PER_FRAME * limits.video_frames
    if iso_samples(data, decoding.go_on) > most:
        raise BadMedia(f"the video lists more than {most:,} samples of video and sound; send a shorter video")


def _memory(stream: VideoStream, width: int, height: int) -> int:
    """Most bytes that decoding a track, and converting and resizing one frame after the other, need."""
    context = stream.codec_context
    sample_bytes = context.format.padded_bits_per_pixel / 8 if context.format is not None else _MOST_BYTES
    references = 0 if context.codec.name == "gif" else _REFERENCES
    decoder = sample_bytes * (references + _FURTHER_FRAMES + _THREADS)
    return int(width * height * (decoder + _CONVERTED_BYTES)) + shrink_memory(height, width)


def _check_work(index: _Index, sample_times: Sequence[int], pixels: int, limits: MediaLimits) -> None:
    """Raise BadMedia if more pixels than the limit must be decoded to reach the frames at `sample_times`."""
    frames, at = 0, 0
    for time in sample_times:
        key = index.keys[max(0, bisect_right(index.keys, time, key=lambda key: key.time) - 1)]
        at = max(at, bisect_left(index.times, key.time))
        end = bisect_right(index.times, time)
        frames += max(0, end - at)
        at = max(at, end)
    if frames * pixels > limits.video_pixels:
        raise _too_much_work(limits)


def _stacked(frames: Iterator[Pixels], count: int) -> Pixels:
    """Copy `count` frames into one array, one after the other. Raises BadMedia if their sizes differ."""
    stacked: Pixels | None = None
    for at, frame in enumerate(frames):
        if stacked is None:
            stacked = np.empty((count, *frame.shape), dtype=np.uint8)
        if frame.shape != stacked.shape[1:]:
            raise BadMedia("the size of the video's frames changes; re-encode it at one size")
        stacked[at] = frame
    assert stacked is not None
    return stacked


def _index(file: InputContainer, stream: VideoStream, limits: MediaLimits, decoding: Decoding) -> _Index:
    """Read the times of all frames from the packets. Raises BadMedia."""
    times: list[int] = []
    keys: list[_Key] = []
    end = 0
    if file.duration is not None and file.duration / av.time_base > limits.video_seconds:
        raise _too_long(file.duration / av.time_base, limits)
    for packet in file.demux(stream):
        decoding.go_on()
        # A packet that an edit list cuts away is decoded, but its frame is not part of the video.
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            raise BadMedia("the video's frames have no times; re-encode it")
        times.append(packet.pts)
        end = max(end, packet.pts + (packet.duration or 0))
        if packet.is_keyframe:
            keys.append(_Key(packet.pts, packet.pts if packet.dts is None else packet.dts))
        if len(times) > limits.video_frames:
            raise BadMedia(
                f"the video has more than {limits.video_frames:,} frames, the limit of {limits.video_seconds:g} "
                f"seconds at {MAX_FRAME_RATE} frames per second"
            )
    if not times:
        raise BadMedia("the video has no frames")
    times.sort()
    keys.sort()
    seconds = float((end - times[0]) * (stream.time_base or 0))
    if seconds > limits.video_seconds:
        raise _too_long(seconds, limits)
    rate = float(stream.average_rate or 0) or (len(times) / seconds if seconds > 0 else 0.0)
    if rate <= 0:
        if len(times) > 1:
            raise BadMedia("the video does not give its frame rate; re-encode it")
        rate = 1.0
    return _Index(times, keys or [_Key(times[0], times[0])], rate)


def _decode(
    file: InputContainer,
    stream: VideoStream,
    index: _Index,
    sample_times: Sequence[int],
    limits: MediaLimits,
    decoding: Decoding,
) -> Iterator[VideoFrame]:
    """A frame for each of the presentation times `sample_times` (ascending): the first frame at that time or later.

    If a key frame lies between the last decoded frame and the next sample time, decoding jumps to the key frame.
    """
    frames = _from(file, stream, index.keys[0])
    last: VideoFrame | None = None
    may_jump = True
    decoded = 0
    for time in sample_times:
        key = index.keys[max(0, bisect_right(index.keys, time, key=lambda key: key.time) - 1)]
        jumped = may_jump and last is not None and _time(last) < key.time
        if jumped:
            frames = _from(file, stream, key)
            last = None
        while last is None or _time(last) < time:
            decoding.go_on()
            last = next(frames, None)
            if last is None:
                raise BadMedia("the video breaks off before its last frames; send the whole file")
            decoded += last.width * last.height
            if decoded > limits.video_pixels:
                raise _too_much_work(limits)
            if jumped and _time(last) > time:
                # The file's index is wrong, so the file is decoded from its start, without jumps.
                may_jump = jumped = False
                frames = _from(file, stream, index.keys[0])
                last = None
            jumped = False
        if last.is_corrupt:
            raise BadMedia("the video is damaged; send an intact file")
        yield last


def _from(file: InputContainer, stream: VideoStream, key: _Key) -> Iterator[VideoFrame]:
    """The decoded frames from a key frame on."""
    file.seek(key.seek, stream=stream)
    yield from file.decode(stream)


def _time(frame: VideoFrame) -> int:
    if frame.pts is None:
        raise BadMedia("the video's frames have no times; re-encode it")
    return frame.pts


def _to_array(frame: VideoFrame, limits: MediaLimits) -> Pixels:
    """A frame as upright RGB, uint8 [H, W, 3], with transparent parts over white."""
    limits.check_pixels(frame.width, frame.height)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        layered = PIL.Image.fromarray(frame.to_ndarray(format="rgba"))
        pixels = np.array(to_rgb(layered, limits))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _not_a_video(data: bytes, limits: MediaLimits, decoding: Decoding) -> str:
    """The error for a file that is not a video. It quotes no content, because only the server may read the file."""
    try:
        with open_image(data, limits, decoding).image as image:
            if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
                return (
                    f"an animated {image.format} is not read as a video; send it as GIF, MP4 or WebM, or its first "
                    "frame as an image part"
                )
            return "this is an image, not a video; send it as an image part"
    except Exception:  # the file is not an image either, whatever the reason
        if (kind := unsupported_video(data)) is not None:
            return f"videos of this kind are not supported ({kind}); re-encode it as MP4 or WebM"
        if (kind := unsupported_image(data, decoding.go_on)) is not None:
            return _still(kind)
        return f"this file of {len(data):,} bytes is not a video; MP4, QuickTime, WebM and GIF are supported"


def _still(kind: str) -> str:
    convert = "" if kind == "AVIF" else "convert it to JPEG or PNG and "
    return f"this is a still image ({kind}), not a video; {convert}send it as an image part"


def _too_much_work(limits: MediaLimits) -> BadMedia:
    return BadMedia(
        f"more than {limits.video_pixels:,} pixels have to be decoded to sample the video; "
        "send a shorter or smaller video, or a video with more key frames"
    )


def _too_long(seconds: float, limits: MediaLimits) -> BadMedia:
    return BadMedia(
        f"the video is {seconds:.1f} seconds long, over the limit of {limits.video_seconds:g}; "
        "send a shorter video or raise the limit"
    )
