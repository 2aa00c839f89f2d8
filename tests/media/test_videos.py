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
from rerankd.media.limits import BadMedia, Limits, NotRead
from rerankd.media.sizing import TOKEN, Sizing
from rerankd.media.videos import read_video
from tests.media import films
from tests.media.films import film
from tests.media.patterns import Pixels, scene

LIMITS = Limits()
SMALL = Sizing(frame_min_pixels=TOKEN, frame_max_pixels=4 * TOKEN)
"""Lets a frame of 64 x 32 or 64 x 64 through as it is."""


def read(
    data: bytes, fps: float = 1.0, max_frames: int = 64, limits: Limits = LIMITS, decoding: Decoding | None = None
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


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"RIFF....WAVE",
        b"<html>secret</html>",
    ],
)
def test_only_three_containers_are_read(data: bytes) -> None:
    with pytest.raises(NotRead, match="not a video; MP4, QuickTime, WebM and GIF are read") as caught:
        read(data)
    assert f"of {len(data)} bytes" in str(caught.value)
    assert not data or data[:6].decode() not in str(caught.value), "nothing of the file itself is told"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"RIFF....AVI LIST", "AVI"),
        (b"FLV\x01\x05", "Flash"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6", "Windows Media"),
        (b"\0\0\1\xba\x44", "MPEG"),
        (b"\x47" * 188 * 4, "MPEG transport stream"),
        (b"OggS\0", "Ogg"),
    ],
)
def test_other_kinds_of_film_say_what_to_do(data: bytes, kind: str) -> None:
    with pytest.raises(NotRead, match=rf"a kind that is not read \({kind}\); re-encode it as MP4 or WebM"):
        read(data)


def saved(form: str, frames: int = 1, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    pictures = [PIL.Image.new("RGB", size, colour) for colour in ("red", "lime", "blue", "white")][:frames]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(buffer, form, **more, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("brands", [b"avifmif1miaf", b"mif1avif", b"isomavif"])
def test_an_avif_picture_is_no_film(brands: bytes) -> None:
    data = saved("AVIF").replace(
        b"ftypavif\0\0\0\0avifmif1miafMA1B", b"ftyp" + brands[:4] + b"\0\0\0\0" + 4 * brands[-4:]
    )
    with pytest.raises(NotRead, match=r"a still picture \(AVIF\), not a video; send it as an image part"):
        read(data)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [(b"heicmif1", "HEIF"), (b"mif1heic", "HEIF"), (b"crx isom", "camera raw"), (b"isomisom", "in a")],
)
def test_pictures_in_other_iso_files_are_no_film(brands: bytes, kind: str) -> None:
    """The very bytes that libavformat would read as a film of one frame."""
    data = saved("AVIF").replace(b"ftypavif\0\0\0\0avifmif1miafMA1B", b"ftyp" + brands[:4] + b"\0\0\0\0" + brands * 2)
    with pytest.raises(
        NotRead, match=rf"a still picture \({kind}.*, not a video; convert it to JPEG or PNG and send it"
    ):
        read(data)


@pytest.mark.parametrize("brand", [b"avis", b"msf1", b"hevc"])
def test_a_sequence_of_pictures_is_a_film(brand: bytes) -> None:
    frames, seconds = read(saved("AVIF", 4, quality=100, duration=500).replace(b"ftypavis", b"ftyp" + brand))
    assert len(seconds) == 2
    shown = [frame[32, 32].astype(int) for frame in frames]
    for pixel, expected in zip(shown, [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], strict=True):
        assert np.abs(pixel - expected).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animated_pictures_are_no_films(form: str) -> None:
    with pytest.raises(NotRead, match=f"an animated {form} is not read as a video; send it as GIF, MP4 or WebM"):
        read(saved(form, 3))


@pytest.mark.parametrize("form", ["ICO", "JPEG2000"])
def test_other_pictures_are_no_films(form: str) -> None:
    with pytest.raises(NotRead, match="not a video; convert it to JPEG or PNG and send it as an image part"):
        read(saved(form))


@pytest.mark.parametrize("tail", [b"", film(films.MP4)])
def test_a_photo_is_no_film_and_a_motion_photo_neither(tail: bytes) -> None:
    with pytest.raises(NotRead, match="this is an image, not a video; send it as an image part"):
        read(saved("JPEG") + tail)


def test_a_still_in_a_quicktime_film_stands_alone() -> None:
    frames, seconds = read(film(films.MOV, frames=1, size=(64, 64), crf="0"))
    assert (len(frames), seconds) == (1, (0.0,))
    assert np.array_equal(frames[0], scene(64, 64, 0))


def test_an_image_as_a_video_says_so() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(BadMedia, match="this is an image, not a video; send it as an image part"):
        read(buffer.getvalue())


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


def test_the_limit_for_seconds() -> None:
    data = film(films.MP4, frames=30)
    assert len(read(data, limits=Limits(video_seconds=3.0))[0]) == 4
    with pytest.raises(BadMedia, match=r"3\.0 seconds long, over the limit of 2\.9"):
        read(data, limits=Limits(video_seconds=2.9))


def test_the_limit_for_seconds_where_the_header_lies() -> None:
    data = bytearray(film(films.MP4, frames=30))
    for box, duration in ((b"mvhd", 16), (b"mdhd", 16)):
        at = data.index(box) + 4 + duration
        data[at : at + 4] = (1).to_bytes(4, "big")
    with pytest.raises(BadMedia, match="over the limit of 2"):
        read(bytes(data), limits=Limits(video_seconds=2.0))


def test_the_limit_for_frames() -> None:
    data = film(films.MP4, frames=300, rate=600)
    with pytest.raises(BadMedia, match="more than 240 frames, the limit of 1 seconds at 240 a second"):
        read(data, limits=Limits(video_seconds=1.0))


def test_the_limit_for_pixels() -> None:
    data = film(films.MP4, frames=4, size=(640, 480))
    with pytest.raises(BadMedia, match=r"640 x 480 is 307,200 pixels, over the limit of 307,199"):
        read(data, limits=Limits(pixels=307_199))
    assert len(read(data, limits=Limits(pixels=310_000))[0]) == 4


def test_the_limit_for_pixels_where_the_header_lies() -> None:
    data = bytearray(film(films.MP4, frames=4, size=(640, 480)))
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    assert data[at : at + 4] == (640).to_bytes(2, "big") + (480).to_bytes(2, "big")
    data[at : at + 4] = (16).to_bytes(2, "big") * 2
    with pytest.raises(BadMedia, match=r"over the limit|cannot be decoded"):
        read(bytes(data), limits=Limits(pixels=100_000))


def test_the_limit_for_pixels_that_are_decoded() -> None:
    # A GIF has one key frame: its last frame is reached through all others.
    data = film(films.GIF, frames=30, size=(100, 100))
    assert len(read(data, limits=Limits(video_pixels=300_000))[0]) == 4
    with pytest.raises(BadMedia, match="more than 299,999 pixels have to be decoded"):
        read(data, limits=Limits(video_pixels=299_999))


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
        read(film(films.GIF, frames=30, size=(100, 100)), limits=Limits(video_pixels=299_999))


def test_key_frames_save_work() -> None:
    """64 x 64 pixels; four frames are shown, none further from its key frame than nine others."""
    data = film(films.MP4, frames=200, size=(64, 64), g="10", bf="0")
    assert len(read(data, fps=0.1, limits=Limits(video_pixels=64 * 64 * 40))[0]) == 4
    with pytest.raises(BadMedia, match="have to be decoded"):
        read(data, fps=0.1, limits=Limits(video_pixels=64 * 64 * 3))


def test_memory_is_held_for_what_a_decoder_takes() -> None:
    small = Budget(videos._PROBE_MEMORY, "decoding")
    data = film(films.MP4, frames=4, size=(640, 480))
    assert len(read(data, decoding=Decoding(small, 60.0, threading.Event()))[0]) == 4
    assert small.held == 0
    data = film(films.MP4, frames=4, size=(1920, 1280))
    with pytest.raises(
        BadMedia, match=r"it takes about [\d.]+ MiB of memory, over the limit of 108.0 MiB for decoding"
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
    with pytest.raises(BadMedia, match="lists more than 1,152,000 samples of picture and sound"):
        read(bytes(data))


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
    assert len(read(data, limits=Limits(video_seconds=4.0))[0]) == 4, "four seconds may have 7,680 samples"


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


@settings(max_examples=30, deadline=None)
@given(
    codec=st.sampled_from(["mp4", "webm", "gif"]),
    flips=st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_a_video_or_refused(codec: str, flips: list[tuple[int, int]]) -> None:
    data = bytearray(FILMS.setdefault(codec, film(CODECS[codec], frames=12)))
    for at, value in flips:
        data[at % len(data)] = value
    with contextlib.suppress(BadMedia):
        frames, seconds = read(bytes(data), limits=Limits(pixels=1_000_000))
        assert -(-len(frames) // 2) == len(seconds)


FILMS: dict[str, bytes] = {}
