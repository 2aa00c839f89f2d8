"""Reading videos: containers, frames, times, sound."""

from __future__ import annotations

import contextlib
import io
import threading
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
from av.stream import Disposition
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.media import videos
from rerankd.media.budget import Budget
from rerankd.media.decoding import Decoding
from rerankd.media.limits import BadMedia, MediaLimits
from rerankd.media.sizing import TOKEN, Sizing
from rerankd.media.videos import read_video
from tests.media import films
from tests.media.films import film
from tests.media.patterns import Pixels, scene

LIMITS = MediaLimits()
SMALL = Sizing(frame_min_pixels=TOKEN, frame_max_pixels=4 * TOKEN)
"""Lets a frame of 64 x 32 or 64 x 64 through as it is."""


def read(
    data: bytes, fps: float = 1.0, max_frames: int = 64, limits: MediaLimits = LIMITS, decoding: Decoding | None = None
) -> tuple[Pixels, tuple[float, ...]]:
    decoding = decoding or Decoding(Budget(limits.decode_memory, "decoding"), 60.0, threading.Event())
    return read_video(data, 32, SMALL, fps, max_frames, limits, decoding, contextlib.nullcontext)


CODECS = {name.lower(): getattr(films, name) for name in ("MP4", "WEBM", "WEBM_VP8", "MATROSKA", "MOV", "GIF")}


@pytest.mark.parametrize("codec", CODECS)
def test_every_container(codec: str) -> None:
    data = film(CODECS[codec], frames=30, size=(64, 64))
    frames, seconds = read(data, fps=2.0)
    whole = films.every_frame(data)
    assert len(whole) == 30
    assert frames.shape == (6, 64, 64, 3)
    # linspace(0, 29, 6), rounded
    assert all(np.array_equal(frames[i], whole[at]) for i, at in enumerate((0, 6, 12, 17, 23, 29)))
    assert seconds == pytest.approx((0.3, 1.45, 2.6))


def test_first_and_last_frame_are_read_and_look_like_what_was_written() -> None:
    frames, _ = read(film(films.MOV, frames=25, size=(64, 64), crf="0"))
    assert np.array_equal(frames[0], scene(64, 64, 0))
    assert np.array_equal(frames[-1], scene(64, 64, 24))


@pytest.mark.parametrize("codec", ["mp4", "matroska", "webm", "webm_vp8"])
def test_jumping_between_key_frames_finds_the_same_frames(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"g": "10"} | ({"bf": "3", "x264-params": "open-gop=1"} if "264" in CODECS[codec][1] else {})
    data = film(CODECS[codec], frames=200, size=(64, 64), **options)
    jumps = []
    begin = videos._from
    monkeypatch.setattr(videos, "_from", lambda *place: jumps.append(place[2].time) or begin(*place))
    frames, _ = read(data, fps=0.4)
    whole = films.every_frame(data)
    wanted = np.linspace(0, 199, 8).round().astype(int)
    assert all(np.array_equal(frames[i], whole[at]) for i, at in enumerate(wanted))
    assert len(set(jumps)) == 8, "eight frames twenty-eight apart, a key frame at least every ten"


def test_a_seek_that_lands_too_late_falls_back_to_reading_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film(films.MP4, frames=100, size=(64, 64), g="10")
    begin = videos._from

    def late(file: Any, stream: Any, key: Any) -> Any:
        found = begin(file, stream, key)
        if key.time:
            for _ in range(20):
                next(found, None)
        return found

    monkeypatch.setattr(videos, "_from", late)
    frames, _ = read(data, fps=0.6)
    whole = films.every_frame(data)
    wanted = np.linspace(0, 99, 6).round().astype(int)
    assert all(np.array_equal(frames[i], whole[at]) for i, at in enumerate(wanted))


def test_frames_at_uneven_times_are_counted_and_not_timed() -> None:
    times = [0, 1, 2, 3, 20, 21, 40, 41]
    data = film(films.MATROSKA, frames=8, times=times, size=(64, 64))
    frames, seconds = read(data, fps=100.0, max_frames=8)
    whole = films.every_frame(data)
    assert all(np.array_equal(frame, other) for frame, other in zip(frames, whole, strict=True))
    assert len(seconds) == 4


def test_what_an_edit_list_cuts_away_does_not_count() -> None:
    data = bytearray(film(films.MP4, frames=20, size=(64, 64), bf="0"))
    uncut = films.every_frame(bytes(data))
    at = data.index(b"elst") + 12  # one entry: its length in ms, then where it begins in ticks of 1 / 10240 s
    data[at : at + 8] = (1500).to_bytes(4, "big") + (5 * 1024).to_bytes(4, "big")
    frames, seconds = read(bytes(data), fps=4.0)
    wanted = 5 + np.linspace(0, 14, 6).round().astype(int)
    assert all(np.array_equal(frames[i], uncut[at]) for i, at in enumerate(wanted))
    assert len(seconds) == 3


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_the_display_matrix_turns_frames_upright(rotation: int) -> None:
    pixels = scene(96, 32, 3)
    frames, _ = read(film(films.MOV, frames=[pixels] * 4, rotation=rotation, crf="0"))
    assert np.array_equal(frames[0], np.rot90(pixels, rotation // 90))


def test_a_video_with_alpha_goes_over_white() -> None:
    clear = np.zeros((32, 64, 4), dtype=np.uint8)
    clear[:, :32] = (10, 200, 30, 255)
    frames, _ = read(film(films.MOV_ALPHA, frames=[clear] * 4))
    assert (frames[:, :, :32] == (10, 200, 30)).all()
    assert (frames[:, :, 32:] == 255).all()


def test_a_gif_with_clear_parts_is_white_there() -> None:
    pictures = []
    for colour in (5, 6):
        picture = PIL.Image.new("P", (64, 32), 0)
        picture.putpalette([0, 0, 0] * 5 + [250, 0, 0] + [0, 0, 250])
        picture.paste(colour, (0, 0, 32, 32))
        pictures.append(picture)
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], transparency=0, disposal=2, duration=100)
    frames, _ = read(buffer.getvalue())
    assert (frames[0, :, :32] == (250, 0, 0)).all()
    assert (frames[1, :, :32] == (0, 0, 250)).all()
    assert (frames[:, :, 32:] == 255).all()


def test_a_single_frame_stands_alone() -> None:
    frames, seconds = read(film(films.GIF, frames=1))
    assert (len(frames), seconds) == (1, (0.0,))


@pytest.mark.parametrize("codec", CODECS)
def test_a_truncated_video_is_refused(codec: str) -> None:
    data = film(CODECS[codec], frames=40)
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(BadMedia, match=r"cut short|cannot be decoded"):
            read(data[: int(len(data) * share)])


@pytest.mark.parametrize("codec", ["mp4", "webm", "matroska", "mov"])
def test_a_single_missing_byte_is_noticed(codec: str) -> None:
    with pytest.raises(BadMedia, match="cut short"):
        read(film(CODECS[codec])[:-1])


def test_a_streamed_matroska_file_has_no_size_to_be_cut_from() -> None:
    data = bytearray(film(films.MATROSKA, size=(64, 64)))
    at = data.index(b"\x18\x53\x80\x67") + 4
    data[at : at + 8] = b"\x01" + b"\xff" * 7
    assert len(read(bytes(data))[0]) == 4


@pytest.mark.parametrize("container", ["mp4", "webm", "matroska"])
def test_sound_alone(container: str) -> None:
    with pytest.raises(BadMedia, match="no video track"):
        read(films.sound(container))


def test_a_codec_that_is_not_known() -> None:
    data = film(films.MP4).replace(b"avc1\0\0\0\0", b"zzzz\0\0\0\0")
    with pytest.raises(BadMedia, match="codec is not known here"):
        read(data)


def test_metadata_that_is_no_text() -> None:
    data = film(films.WEBM, size=(64, 64))
    assert data.count(b"ENCODER") > 0
    assert len(read(data.replace(b"ENCODER", b"\x80NCODER"))[0]) == 4


def test_a_file_that_only_begins_like_one() -> None:
    for data in (b"\0\0\0\x14ftypmp42\0\0\0\0mp42", b"\x1a\x45\xdf\xa3\x80", b"GIF89a" + b"\0" * 30):
        with pytest.raises(BadMedia):
            read(data)


def with_sound(sound: str, container: str = "mov") -> bytes:
    """Two seconds of film with sound of 48,000 samples a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        pictures = file.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        sounds = file.add_stream(sound, rate=48_000, layout="mono")
        for time in range(20):
            frame = av.VideoFrame.from_ndarray(scene(64, 64, time), format="rgb24")
            frame.pts = time
            file.mux(pictures.encode(frame))
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 96_000), dtype=np.int16), format="s16p", layout="mono")
        heard.sample_rate = 48_000
        file.mux(sounds.encode(heard))
        file.mux(pictures.encode())
        file.mux(sounds.encode())
    return buffer.getvalue()


def test_sound_without_compression_is_not_counted_sample_by_sample() -> None:
    data = with_sound("pcm_s16le")
    assert int.from_bytes(data[(at := data.rindex(b"stsz") + 12) : at + 4], "big") == 96_000
    assert len(read(data, limits=MediaLimits(video_seconds=4.0))[0]) == 4, "four seconds may have 7,680 samples"


def test_the_cover_of_an_album_is_no_film() -> None:
    with (
        av.open(io.BytesIO(film(films.MOV_ALPHA, frames=1))) as pictures,
        av.open(buffer := io.BytesIO(), "w", "mp4") as file,
    ):
        (packet,) = (packet for packet in pictures.demux(video=0) if packet.size)
        cover = file.add_stream_from_template(pictures.streams.video[0])
        cover.disposition = Disposition.attached_pic
        sounds = file.add_stream("aac", rate=48_000, layout="mono")
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 9600), dtype=np.float32), format="fltp", layout="mono")
        heard.sample_rate = 48_000
        packet.stream = cover
        file.mux(packet)
        file.mux(sounds.encode(heard))
        file.mux(sounds.encode())
    with pytest.raises(BadMedia, match="no video track"):
        read(buffer.getvalue())


@settings(max_examples=30)
@given(
    codec=st.sampled_from(["mp4", "webm", "gif"]),
    flips=st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_a_video_or_refused(codec: str, flips: list[tuple[int, int]]) -> None:
    data = bytearray(FILMS.setdefault(codec, film(CODECS[codec], frames=12)))
    for at, value in flips:
        data[at % len(data)] = value
    with contextlib.suppress(BadMedia):
        frames, seconds = read(bytes(data), limits=MediaLimits(pixels=1_000_000))
        assert -(-len(frames) // 2) == len(seconds)


FILMS: dict[str, bytes] = {}
