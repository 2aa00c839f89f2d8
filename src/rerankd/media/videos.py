"""Video files: from bytes to the sampled frames, each already as small as the model is shown it."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
import PIL.Image
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rerankd.media.containers import container_of, is_cut_short
from rerankd.media.frames import Pixels, shrink
from rerankd.media.images import FORMATS, to_rgb
from rerankd.media.limits import MAX_FRAME_RATE, BadMedia, Limits
from rerankd.media.sampling import file_indices, timestamps
from rerankd.media.sizing import FILE_TOTAL_PIXELS, Sizing


class _Key(NamedTuple):
    """A key frame: when it is shown, and the time that seeking finds it by (its decoding time, if it has one)."""

    time: int
    seek: int


@dataclass(frozen=True, slots=True)
class _Index:
    """What a file's packets say without being decoded.

    times: presentation times of the frames, ascending, in the stream's time base
    keys: the frames that decoding can begin at, ascending; never empty
    rate: frames a second
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
    limits: Limits,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[Pixels, tuple[float, ...]]:
    """The sampled frames of a video file, uint8 [T, H, W, 3], and the seconds of each pair of them.

    MP4, QuickTime, WebM, Matroska and GIF. Frames are turned upright by the file's display matrix, and each
    is resized when it is decoded, so that memory does not grow with the video. `cancelled` is asked between
    frames. Raises BadMedia for what is not such a file, is over `limits`, cut short, damaged, or has no video.
    """
    container = container_of(data)
    if container is None:
        raise BadMedia(_not_a_video(data))
    if is_cut_short(data, container):
        raise BadMedia("the video is cut short; send the whole file")
    decoding = {"max_pixels": str(limits.pixels)}
    # The bytes alone are read: no demuxer is guessed, and none may open another file or URL.
    options = {"protocol_whitelist": "none", **decoding}
    try:
        with av.open(io.BytesIO(data), format=container, options=options, metadata_errors="replace") as file:
            stream = file.streams.best("video")
            if not isinstance(stream, VideoStream):
                raise BadMedia("the file has no video track")
            if stream.codec_context is None:
                raise BadMedia("the video's codec is not known here; re-encode it as H.264, VP9 or AV1")
            limits.check_pixels(stream.width, stream.height)
            stream.codec_context.options = decoding
            stream.thread_type = "AUTO"
            index = _index(file, stream, limits)
            indices = file_indices(len(index.times), index.rate, fps, max_frames)
            low, high = sizing.frame_bounds(len(indices), FILE_TOTAL_PIXELS)
            wanted = [index.times[at] for at in indices]
            frames = _stacked(
                (
                    shrink(_to_array(frame, limits), factor, low, high)
                    for frame in _decode(file, stream, index, wanted, limits, cancelled)
                ),
                len(indices),
            )
    except BadMedia:
        raise
    except (av.FFmpegError, ArithmeticError, LookupError, MemoryError, ValueError) as error:
        raise BadMedia(f"the video cannot be decoded ({type(error).__name__}: {error})") from error
    return frames, timestamps(indices, index.rate)


def _stacked(frames: Iterator[Pixels], count: int) -> Pixels:
    """`count` frames as one array, laid in place one by one."""
    stacked: Pixels | None = None
    for at, frame in enumerate(frames):
        if stacked is None:
            stacked = np.empty((count, *frame.shape), dtype=np.uint8)
        if frame.shape != stacked.shape[1:]:
            raise BadMedia("the video changes its size midway; re-encode it at one size")
        stacked[at] = frame
    assert stacked is not None
    return stacked


def _index(file: InputContainer, stream: VideoStream, limits: Limits) -> _Index:
    times: list[int] = []
    keys: list[_Key] = []
    end = 0
    if file.duration is not None and file.duration / av.time_base > limits.video_seconds:
        raise _too_long(file.duration / av.time_base, limits)
    for packet in file.demux(stream):
        # A packet that an edit list cuts away is decoded but never shown.
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            raise BadMedia("the video's frames carry no times; re-encode it")
        times.append(packet.pts)
        end = max(end, packet.pts + (packet.duration or 0))
        if packet.is_keyframe:
            keys.append(_Key(packet.pts, packet.pts if packet.dts is None else packet.dts))
        if len(times) > limits.video_frames:
            raise BadMedia(
                f"the video has more than {limits.video_frames:,} frames, the limit of {limits.video_seconds:g} "
                f"seconds at {MAX_FRAME_RATE} a second"
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
            raise BadMedia("the video does not say how many frames a second it has; re-encode it")
        rate = 1.0
    return _Index(times, keys or [_Key(times[0], times[0])], rate)


def _decode(
    file: InputContainer,
    stream: VideoStream,
    index: _Index,
    wanted: Sequence[int],
    limits: Limits,
    cancelled: Callable[[], bool],
) -> Iterator[VideoFrame]:
    """A frame for each of the `wanted` presentation times (ascending): the first that is shown then or later.

    Jumps to the last key frame before a wanted time where that saves decoding what lies between.
    """
    frames = _from(file, stream, index.keys[0])
    last: VideoFrame | None = None
    may_jump = True
    decoded = 0
    for time in wanted:
        key = index.keys[max(0, bisect_right(index.keys, time, key=lambda key: key.time) - 1)]
        jumped = may_jump and last is not None and _time(last) < key.time
        if jumped:
            frames = _from(file, stream, key)
            last = None
        while last is None or _time(last) < time:
            if cancelled():
                raise BadMedia("reading the video was cancelled")
            last = next(frames, None)
            if last is None:
                raise BadMedia("the video breaks off before its last frames; send the whole file")
            decoded += last.width * last.height
            if decoded > limits.video_pixels:
                raise BadMedia(
                    f"more than {limits.video_pixels:,} pixels have to be decoded to sample the video; "
                    "send a shorter or smaller one, or one with more key frames"
                )
            if jumped and _time(last) > time:
                # The file's own index is off: this file is read from its start, in order.
                may_jump = jumped = False
                frames = _from(file, stream, index.keys[0])
                last = None
            jumped = False
        if last.is_corrupt:
            raise BadMedia("the video is damaged; send an intact file")
        yield last


def _from(file: InputContainer, stream: VideoStream, key: _Key) -> Iterator[VideoFrame]:
    file.seek(key.seek, stream=stream)
    yield from file.decode(stream)


def _time(frame: VideoFrame) -> int:
    if frame.pts is None:
        raise BadMedia("the video's frames carry no times; re-encode it")
    return frame.pts


def _to_array(frame: VideoFrame, limits: Limits) -> Pixels:
    """Upright RGB, uint8 [H, W, 3], transparent parts white."""
    limits.check_pixels(frame.width, frame.height)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        layered = PIL.Image.fromarray(frame.to_ndarray(format="rgba"))
        pixels = np.array(to_rgb(layered, limits))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _not_a_video(data: bytes) -> str:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS):
            return "this is an image, not a video; send it as an image part"
    except Exception:  # whatever Pillow says of it, it is no image that could be sent instead
        return f"this is not a video; MP4, QuickTime, WebM and GIF are read, and it begins with {data[:12]!r}"


def _too_long(seconds: float, limits: Limits) -> BadMedia:
    return BadMedia(
        f"the video is {seconds:.1f} seconds long, over the limit of {limits.video_seconds:g}; "
        "send a shorter one or raise the limit"
    )
