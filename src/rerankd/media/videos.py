"""Video files: from bytes to the sampled frames, each already as small as the model is shown it."""

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

from rerankd.media.containers import Container, container_of, gif_size, has_film, is_cut_short, iso_picture, iso_samples
from rerankd.media.decoding import Decoding
from rerankd.media.frames import Pixels, shrink, shrink_memory
from rerankd.media.images import open_image, to_rgb
from rerankd.media.limits import MAX_FRAME_RATE, BadMedia, MediaLimits, NotRead
from rerankd.media.sampling import file_indices, timestamps
from rerankd.media.sizing import FILE_TOTAL_PIXELS, Sizing, fit
from rerankd.media.unread import film_kind, picture_kind

_THREADS = min(4, os.cpu_count() or 1)
"""Of one decoder; each holds frames of its own."""
_REFERENCES = 16
"""Frames that a codec's later ones refer to at most."""
_OWN_FRAMES = 3
"""Frames that a decoder holds beside references and those of its threads."""
_PADDING = 128
"""Pixels by which a side may be longer as it is coded."""
_MOST_BYTES = 8
"""Bytes a pixel of a frame whose format is not known: four samples of 16 bits."""
_CONVERTED_BYTES = 3 + 3 + 4 + 4 + 4
"""Bytes a pixel while a frame becomes upright RGB, over white where it is transparent."""
_PROBED_PIXELS = 4096 * 2304
"""Of frames that are decoded to find out what a file holds, before memory is held for more."""
_PROBE_MEMORY = _PROBED_PIXELS * 12
_SAMPLES_A_FRAME = 8
"""Samples of all tracks, sound included, for each frame that a video may have; a demuxer lists all of them."""


class _Key(NamedTuple):
    """A key frame: when it is shown, and the time that seeking finds it by (its decoding time, if it has one)."""

    time: int
    seek: int


@dataclass(frozen=True, slots=True)
class _Index:
    """The facts that a file's packets give without being decoded.

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
    limits: MediaLimits,
    decoding: Decoding,
    claim: Callable[[int], AbstractContextManager[object]],
) -> tuple[Pixels, tuple[float, ...]]:
    """The sampled frames of a video file, uint8 [T, H, W, 3], and the seconds of each pair of them.

    MP4, QuickTime, WebM, Matroska and GIF. Frames are turned upright by the file's display matrix, and each
    is resized when it is decoded, so that memory does not grow with the video. `claim` is entered with the bytes of
    all sampled frames before the first is decoded. Raises NotRead for what is not such a file, and BadMedia for one
    that is over `limits`, cut short, damaged, has no video, or takes more time or memory than `decoding` has.
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
            stream = _film(file)
            width, height = gif_size(data) if container == "gif" else (stream.width, stream.height)
            if not width * height:
                raise BadMedia("the video does not say how large its frames are; re-encode it")
            limits.check_pixels(width, height)
            stream.codec_context.options = {"max_pixels": str((width + _PADDING) * (height + _PADDING))}
            stream.codec_context.thread_count = _THREADS
            stream.thread_type = "AUTO"
            index = _index(file, stream, limits, decoding)
            indices = file_indices(len(index.times), index.rate, fps, max_frames)
            low, high = sizing.frame_bounds(len(indices), FILE_TOTAL_PIXELS)
            rows, columns = fit(height, width, factor, low, high)
            wanted = [index.times[at] for at in indices]
            _check_work(index, wanted, width * height, limits)
            with claim(len(indices) * rows * columns * 3), decoding.holding(_memory(stream, width, height)):
                frames = _stacked(
                    (
                        shrink(_to_array(frame, limits), factor, low, high)
                        for frame in _decode(file, stream, index, wanted, limits, decoding)
                    ),
                    len(indices),
                )
    except BadMedia:
        raise
    except (av.FFmpegError, ArithmeticError, LookupError, MemoryError, ValueError) as error:
        raise BadMedia(f"the video cannot be decoded ({type(error).__name__}: {error})") from error
    return frames, timestamps(indices, index.rate)


class _Watched(io.BytesIO):
    """A file that a demuxer reads only while somebody waits for its work: nothing else ends what it does at once."""

    def __init__(self, data: bytes, decoding: Decoding) -> None:
        super().__init__(data)
        self._decoding = decoding

    def read(self, size: int | None = -1, /) -> bytes:
        self._decoding.go_on()
        return super().read(size)


def _open(data: bytes, container: Container, decoding: Decoding) -> InputContainer:
    # The bytes alone are read: no demuxer is guessed, and none may open another file or URL.
    options = {"protocol_whitelist": "none", "max_pixels": str(_PROBED_PIXELS)}
    return av.open(_Watched(data, decoding), "r", format=container, options=options, metadata_errors="replace")


def _film(file: InputContainer) -> VideoStream:
    """The track to show, which is no picture of an album's cover."""
    stream = file.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise BadMedia("the file has no video track")
    if stream.codec_context is None:
        raise BadMedia("the video's codec is not known here; re-encode it as H.264, VP9 or AV1")
    return stream


def _check_iso(data: bytes, limits: MediaLimits, decoding: Decoding) -> None:
    """Raises BadMedia for an ISO file that holds no film, or lists more samples than a film may have."""
    picture = iso_picture(data, decoding.go_on)
    if picture == "camera raw" or not has_film(data, decoding.go_on):
        raise NotRead(_still(picture or "in a film's container"))
    most = _SAMPLES_A_FRAME * limits.video_frames
    if iso_samples(data, decoding.go_on) > most:
        raise BadMedia(f"the video lists more than {most:,} samples of picture and sound; send a shorter one")


def _memory(stream: VideoStream, width: int, height: int) -> int:
    """Bytes that decoding a track takes at most, and showing one frame after the other."""
    context = stream.codec_context
    sample_bytes = context.format.padded_bits_per_pixel / 8 if context.format is not None else _MOST_BYTES
    references = 0 if context.codec.name == "gif" else _REFERENCES
    decoder = sample_bytes * (references + _OWN_FRAMES + _THREADS)
    return int(width * height * (decoder + _CONVERTED_BYTES)) + shrink_memory(height, width)


def _check_work(index: _Index, wanted: Sequence[int], pixels: int, limits: MediaLimits) -> None:
    """Raises BadMedia where more pixels than the limit lie on the way to the `wanted` frames."""
    frames, at = 0, 0
    for time in wanted:
        key = index.keys[max(0, bisect_right(index.keys, time, key=lambda key: key.time) - 1)]
        at = max(at, bisect_left(index.times, key.time))
        behind = bisect_right(index.times, time)
        frames += max(0, behind - at)
        at = max(at, behind)
    if frames * pixels > limits.video_pixels:
        raise _too_much_work(limits)


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


def _index(file: InputContainer, stream: VideoStream, limits: MediaLimits, decoding: Decoding) -> _Index:
    times: list[int] = []
    keys: list[_Key] = []
    end = 0
    if file.duration is not None and file.duration / av.time_base > limits.video_seconds:
        raise _too_long(file.duration / av.time_base, limits)
    for packet in file.demux(stream):
        decoding.go_on()
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
    limits: MediaLimits,
    decoding: Decoding,
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
            decoding.go_on()
            last = next(frames, None)
            if last is None:
                raise BadMedia("the video breaks off before its last frames; send the whole file")
            decoded += last.width * last.height
            if decoded > limits.video_pixels:
                raise _too_much_work(limits)
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


def _to_array(frame: VideoFrame, limits: MediaLimits) -> Pixels:
    """Upright RGB, uint8 [H, W, 3], transparent parts white."""
    limits.check_pixels(frame.width, frame.height)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        layered = PIL.Image.fromarray(frame.to_ndarray(format="rgba"))
        pixels = np.array(to_rgb(layered, limits))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _not_a_video(data: bytes, limits: MediaLimits, decoding: Decoding) -> str:
    """Nothing of the file itself is told: it may come from where only this machine can look."""
    try:
        with open_image(data, limits, decoding).image as image:
            if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
                return (
                    f"an animated {image.format} is not read as a video; send it as GIF, MP4 or WebM, or its first "
                    "frame as an image part"
                )
            return "this is an image, not a video; send it as an image part"
    except Exception:  # whatever Pillow says of it, it is no image that could be sent instead
        if (kind := film_kind(data)) is not None:
            return f"videos of this kind are not supported ({kind}); re-encode it as MP4 or WebM"
        if (kind := picture_kind(data, decoding.go_on)) is not None:
            return _still(kind)
        return f"this file of {len(data):,} bytes is not a video; MP4, QuickTime, WebM and GIF are supported"


def _still(kind: str) -> str:
    convert = "" if kind == "AVIF" else "convert it to JPEG or PNG and "
    return f"this is a still picture ({kind}), not a video; {convert}send it as an image part"


def _too_much_work(limits: MediaLimits) -> BadMedia:
    return BadMedia(
        f"more than {limits.video_pixels:,} pixels have to be decoded to sample the video; "
        "send a shorter or smaller one, or one with more key frames"
    )


def _too_long(seconds: float, limits: MediaLimits) -> BadMedia:
    return BadMedia(
        f"the video is {seconds:.1f} seconds long, over the limit of {limits.video_seconds:g}; "
        "send a shorter one or raise the limit"
    )
