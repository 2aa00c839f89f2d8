"""What videos may cost: seconds, frames, pixels, time and memory."""

from __future__ import annotations

import io
import threading

import av
import pytest

from rerankd.media import videos
from rerankd.media.budget import Budget
from rerankd.media.decoding import Decoding
from rerankd.media.limits import BadMedia, MediaLimits
from tests.media import films
from tests.media.films import film
from tests.media.test_videos import LIMITS, read


def test_the_limit_for_seconds() -> None:
    data = film(films.MP4, frames=30)
    assert len(read(data, limits=MediaLimits(video_seconds=3.0))[0]) == 4
    with pytest.raises(BadMedia, match=r"3\.0 seconds long, over the limit of 2\.9"):
        read(data, limits=MediaLimits(video_seconds=2.9))


def test_the_limit_for_seconds_where_the_header_lies() -> None:
    data = bytearray(film(films.MP4, frames=30))
    for box, duration in ((b"mvhd", 16), (b"mdhd", 16)):
        at = data.index(box) + 4 + duration
        data[at : at + 4] = (1).to_bytes(4, "big")
    with pytest.raises(BadMedia, match="over the limit of 2"):
        read(bytes(data), limits=MediaLimits(video_seconds=2.0))


def test_the_limit_for_frames() -> None:
    data = film(films.MP4, frames=300, rate=600)
    with pytest.raises(BadMedia, match="more than 240 frames, the limit of 1 seconds at 240 frames per second"):
        read(data, limits=MediaLimits(video_seconds=1.0))


def test_the_limit_for_pixels() -> None:
    data = film(films.MP4, frames=4, size=(640, 480))
    with pytest.raises(BadMedia, match=r"640 x 480 is 307,200 pixels, over the limit of 307,199"):
        read(data, limits=MediaLimits(pixels=307_199))
    assert len(read(data, limits=MediaLimits(pixels=310_000))[0]) == 4


def test_the_limit_for_pixels_where_the_header_lies() -> None:
    data = bytearray(film(films.MP4, frames=4, size=(640, 480)))
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    assert data[at : at + 4] == (640).to_bytes(2, "big") + (480).to_bytes(2, "big")
    data[at : at + 4] = (16).to_bytes(2, "big") * 2
    with pytest.raises(BadMedia, match=r"over the limit|cannot be decoded"):
        read(bytes(data), limits=MediaLimits(pixels=100_000))


def test_the_limit_for_pixels_that_are_decoded() -> None:
    # A GIF has one key frame: its last frame is reached through all others.
    data = film(films.GIF, frames=30, size=(100, 100))
    assert len(read(data, limits=MediaLimits(video_pixels=300_000))[0]) == 4
    with pytest.raises(BadMedia, match="more than 299,999 pixels have to be decoded"):
        read(data, limits=MediaLimits(video_pixels=299_999))


def test_damage_within_a_video_is_noticed() -> None:
    data = bytearray(film(films.MP4, frames=40, size=(128, 96)))
    start = data.index(b"mdat") + 900
    data[start : start + 600] = b"\xa5" * 600
    with pytest.raises(BadMedia, match=r"damaged|cannot be decoded|breaks off"):
        read(bytes(data), fps=10.0)


class Slices(Decoding):
    """Counts how often it is asked, and after so many says no."""

    def __init__(self, most: int, seconds: float = 60.0) -> None:
        super().__init__(Budget(LIMITS.decode_memory, "decoding"), seconds, threading.Event())
        self.most = most
        self.asked = 0

    def go_on(self) -> None:
        self.asked += 1
        if self.asked == self.most:
            self.cancel()
        super().go_on()


def test_cancelling_ends_every_phase_within_a_slice() -> None:
    data = film(films.MP4, frames=40)
    whole = Slices(10**9)
    read(data, decoding=whole)
    assert whole.asked > 2 * 40, "each packet and each frame"
    for most in range(1, whole.asked + 1):
        slices = Slices(most)
        with pytest.raises(BadMedia, match="cancelled"):
            read(data, decoding=slices)
        assert slices.asked <= most + 5, "libavformat may ask for bytes again before it gives up"


def test_the_limit_for_decoding_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("rerankd.media.decoding.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(BadMedia, match="takes more than 50 seconds, the limit"):
        read(film(films.MP4, frames=40), decoding=Slices(10**9, seconds=50.0))


def test_work_is_counted_before_any_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_decode", None)
    with pytest.raises(BadMedia, match="more than 299,999 pixels have to be decoded"):
        read(film(films.GIF, frames=30, size=(100, 100)), limits=MediaLimits(video_pixels=299_999))


def test_key_frames_save_work() -> None:
    """64 x 64 pixels; four frames are shown, none further from its key frame than nine others."""
    data = film(films.MP4, frames=200, size=(64, 64), g="10", bf="0")
    assert len(read(data, fps=0.1, limits=MediaLimits(video_pixels=64 * 64 * 40))[0]) == 4
    with pytest.raises(BadMedia, match="have to be decoded"):
        read(data, fps=0.1, limits=MediaLimits(video_pixels=64 * 64 * 3))


@pytest.mark.slow
def test_memory_is_held_for_what_a_decoder_takes() -> None:
    small = Budget(videos._PROBE_MEMORY, "decoding")
    data = film(films.MP4, frames=4, size=(640, 480))
    assert len(read(data, decoding=Decoding(small, 60.0, threading.Event()))[0]) == 4
    assert small.held == 0
    data = film(films.MP4, frames=4, size=(1920, 1280))
    with pytest.raises(
        BadMedia,
        match=r"video takes about [\d.]+ MiB of memory, over the limit of 108.0 MiB for decoding",
    ):
        read(data, decoding=Decoding(small, 60.0, threading.Event()))


def in_fragments(data: bytes) -> bytes:
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(io.BytesIO(data)) as whole, av.open(buffer, "w", "mp4", options=options) as file:
        track = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = track
                file.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize("field", ["stsz", "trun"])
def test_samples_that_a_few_bytes_claim_are_not_listed(field: str) -> None:
    data = bytearray(film(films.MP4, frames=20, g="5"))
    if field == "trun":
        data = bytearray(in_fragments(bytes(data)))
    at = data.rindex(field.encode()) + 4
    count = at + (8 if field == "stsz" else 4)
    assert len(read(bytes(data))[0]) == 4
    data[count : count + 4] = (50_000_000).to_bytes(4, "big")
    with pytest.raises(BadMedia, match="lists more than 1,152,000 samples of video and sound"):
        read(bytes(data))
