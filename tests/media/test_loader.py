from __future__ import annotations

import asyncio
import base64
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import pytest

from rerankd.core import Content, Image, InvalidRequest, RerankRequest, Text, Video, text_content
from rerankd.media import loader as loader_module
from rerankd.media.limits import BadMedia, Limits
from rerankd.media.loader import LoadedMedia, MediaLoader
from rerankd.media.sizing import Sizing
from rerankd.media.sources import Access
from rerankd.media.visual import VisionFormat
from tests.media import films
from tests.media.patterns import pattern
from tests.media.servers import Server, ok, serving

OFFLINE = Access(local_folders=None, allow_private=True)
PICTURE = PIL.Image.fromarray(pattern(96, 64))


def png(image: PIL.Image.Image = PICTURE) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


QUERY = text_content("q")


def request(*documents: Content, query: Content = QUERY) -> RerankRequest:
    return RerankRequest(query, documents)


def load(what: RerankRequest, access: Access = OFFLINE, skip: bool = False, **options: Any) -> LoadedMedia:
    with MediaLoader(VisionFormat(), access=access, **options) as loader:
        return loader.load_blocking(what, skip_bad_documents=skip)


def refused(what: RerankRequest, **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        load(what, **options)
    return caught.value


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.answers["/a.png"] = ok(png())
        yield running


def test_every_source_gives_the_same_picture(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    sources = [server.url("/a.png"), data_uri(png()), f"file://{path}", str(path), path, PICTURE]
    loaded = load(request(*((Image(source),) for source in sources)))
    assert len({document[0].digest for document in loaded.documents}) == 1
    assert np.array_equal(loaded.documents[0][0].frames[0], pattern(96, 64))


def test_every_source_gives_the_same_video(server: Server, tmp_path: Path) -> None:
    film = films.film(films.MP4)
    path = tmp_path / "a.mp4"
    path.write_bytes(film)
    server.answers["/a.mp4"] = ok(film)
    sources = [server.url("/a.mp4"), data_uri(film), f"file://{path}", str(path), path]
    loaded = load(request(*((Video(source),) for source in sources)))
    assert len({document[0].digest for document in loaded.documents}) == 1
    visual = loaded.documents[0][0]
    assert (visual.kind, len(visual.frames), len(visual.seconds)) == ("video", 4, 2)


def test_visuals_lie_in_the_order_of_their_parts() -> None:
    small, large = PIL.Image.new("RGB", (64, 64), "red"), PIL.Image.new("RGB", (128, 64), "blue")
    film = Video([small, small])
    loaded = load(
        request(
            (Text("a"), Image(small), Text("b"), Image(large)),
            text_content("no picture"),
            (film, Image(large)),
            query=(Image(large), Text("like this")),
        )
    )
    assert [visual.grid for visual in loaded.query] == [(1, 4, 8)]
    assert [[visual.grid for visual in document] for document in loaded.documents] == [
        [(1, 4, 4), (1, 4, 8)],
        [],
        [(1, 24, 24), (1, 4, 8)],
    ]
    assert [visual.kind for visual in loaded.documents[2]] == ["video", "image"]
    assert loaded.failed == {}


def test_a_request_without_media_needs_nothing() -> None:
    loaded = load(request(text_content("a"), text_content("b")))
    assert loaded == LoadedMedia((), ((), ()), {})


def test_the_size_of_an_image_is_the_parts_or_the_servers() -> None:
    image = PIL.Image.new("RGB", (640, 640))
    parts = (Image(image), Image(image, max_pixels=64 * 1024), Image(image, min_pixels=900 * 1024))
    loaded = load(request(parts), sizing=Sizing(max_pixels=900 * 1024))
    assert [visual.tokens for visual in loaded.documents[0]] == [400, 64, 900]
    loaded = load(request(parts[:1]), sizing=Sizing(max_pixels=100 * 1024))
    assert loaded.documents[0][0].tokens == 100


def test_the_frames_of_a_video_are_the_parts_or_the_servers() -> None:
    film = data_uri(films.film(films.MP4, frames=100))  # ten seconds
    parts = (Video(film), Video(film, fps=2.0), Video(film, fps=2.0, max_frames=6))
    loaded = load(request(parts))
    assert [len(visual.frames) for visual in loaded.documents[0]] == [10, 20, 6]
    loaded = load(request(parts[:1]), sizing=Sizing(fps=0.6, max_frames=64))
    assert len(loaded.documents[0][0].frames) == 6


def test_a_list_of_frames_from_every_source(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    loaded = load(request((Video((PICTURE, str(path), server.url("/a.png"))), Video([PICTURE] * 3))))
    first, second = loaded.documents[0]
    assert first.digest == second.digest
    assert first.seconds == (0.25, 1.25)
    assert len(first.frames) == 4


def test_what_occurs_several_times_is_fetched_and_decoded_once(server: Server) -> None:
    url = server.url("/a.png")
    loaded = load(request(*[(Image(url), Image(PICTURE))] * 5, query=(Image(url),)))
    assert len(server.seen) == 1
    visuals = {id(visual) for document in loaded.documents for visual in document}
    assert len(visuals) == 2
    assert loaded.documents[0][0] is loaded.query[0]


def test_the_same_source_in_two_sizes_is_not_the_same(server: Server) -> None:
    url = server.url("/a.png")
    loaded = load(request((Image(url), Image(url, min_pixels=20 * 1024))))
    assert [visual.tokens for visual in loaded.documents[0]] == [6, 24]


BAD = Image(data_uri(b"this is text"))


@pytest.mark.parametrize(
    ("what", "field", "problem"),
    [
        (request(text_content("a"), (Text("b"), BAD)), "documents[1].content[1]", "not an image"),
        (request(text_content("a"), query=(BAD,)), "query.content[0]", "not an image"),
        (request((Video(data_uri(b"text")),)), "documents[0].content[0]", "not a video"),
        (request((Image(None),)), "documents[0].content[0]", "not a URL, a path or a PIL image"),
        (request((Image(PICTURE, min_pixels=-5),)), "documents[0].content[0]", "min_pixels is -5"),
        (request((Video([PICTURE], max_frames=0),)), "documents[0].content[0]", "max_frames is 0"),
        (request((Video([]),)), "documents[0].content[0]", "the list of frames is empty"),
        (request((Video([PICTURE, "data:,x"]),)), "documents[0].content[0]", "frame 1: this is not an image"),
        (
            request((Video([PICTURE, PIL.Image.new("RGB", (400, 64))]),)),
            "documents[0].content[0]",
            "frame 1 has another shape than frame 0",
        ),
        (
            request((Image(PIL.Image.new("RGB", (300, 1))),)),
            "documents[0].content[0]",
            "300 x 1 is more than 200 times as long as wide",
        ),
    ],
)
def test_errors_name_their_part(what: RerankRequest, field: str, problem: str) -> None:
    error = refused(what)
    assert error.field == field
    assert problem in error.problem


def test_limits_are_the_loaders(server: Server) -> None:
    film = data_uri(films.film(films.MP4, frames=50))
    for part, limits, problem in [
        (Image(server.url("/a.png")), Limits(image_bytes=100), "over the limit of 100 bytes"),
        (Image(data_uri(png())), Limits(image_bytes=100), "over the limit of 100 bytes"),
        (Video(film), Limits(video_bytes=200), "over the limit of 200 bytes"),
        (Image(PICTURE), Limits(pixels=6143), "96 x 64 is 6,144 pixels, over the limit of 6,143"),
        (Video(film), Limits(video_seconds=4.0), "5.0 seconds long, over the limit of 4"),
    ]:
        assert problem in refused(request((part,)), limits=limits).problem


def test_the_limit_for_parts() -> None:
    what = request((Image(PICTURE), Text("t")), (Video([PICTURE]),), query=(Image(PICTURE),))
    assert len(load(what, limits=Limits(parts=3)).query) == 1
    error = refused(what, limits=Limits(parts=2))
    assert error.field == "documents"
    assert "holds 3 images and videos, over the limit of 2" in error.problem


@pytest.mark.parametrize("skip", [False, True])
def test_the_limit_for_what_is_shown(skip: bool) -> None:
    """1152 x 1024 pixels take 3.4 MiB; three eighths of the memory hold eight; what occurs twice counts once."""
    pictures = [PIL.Image.new("RGB", (1152, 1024), (shade, 0, 0)) for shade in range(8)]
    parts = [(Image(picture),) for picture in (*pictures, pictures[0])]
    what = request(*parts, *([(BAD,)] if skip else []))
    enough = 8 * 1152 * 1024 * 3 * 8 // 3
    assert len(load(what, skip=skip, limits=Limits(memory=enough)).documents[8]) == 1
    error = refused(what, skip=skip, limits=Limits(memory=enough - 8))
    assert error.field == "documents"
    assert "take more than 27.0 MiB together" in error.problem


def test_names_are_looked_up_in_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop's own threads also tokenise: nobody's name server may hold them."""
    threads: list[str] = []

    def look_up(*_: Any, **__: Any) -> Any:
        threads.append(threading.current_thread().name)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    refused(request((Image("http://slow.test/a.png"),)))
    assert [name.rpartition("_")[0] for name in threads] == ["rerankd-lookup"]


def test_a_server_reads_neither_paths_nor_private_addresses(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for source in (str(path), f"file://{path}", server.url("/a.png")):
        refused(request((Image(source),)), access=Access())
    assert server.seen == []
    access = Access(local_folders=(tmp_path,), allow_private=True)
    assert len(load(request((Image(f"file://{path}"),), (Image(server.url("/a.png")),)), access).documents) == 2


def test_bad_documents_are_skipped_on_request() -> None:
    what = request((Image(PICTURE),), (BAD, Image(PICTURE)), text_content("t"), (Text("x"), BAD, BAD))
    loaded = load(what, skip=True)
    assert {index: error.field for index, error in loaded.failed.items()} == {
        1: "documents[1].content[0]",
        3: "documents[3].content[1]",
    }
    assert loaded.documents[0][0].tokens == 6


def test_a_bad_query_is_never_skipped() -> None:
    assert refused(request((Image(PICTURE),), query=(BAD,)), skip=True).field == "query.content[0]"


def test_the_first_failure_ends_the_rest(server: Server) -> None:
    under_way, gone = threading.Event(), threading.Event()

    def forever(file: BinaryIO) -> None:
        try:
            file.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            under_way.set()
            while True:
                file.write(b"1\r\n.\r\n")
                file.flush()
        finally:
            gone.set()

    def bad(file: BinaryIO) -> None:
        under_way.wait(30)
        file.write(ok(b"this is text"))

    server.answers |= {"/forever": forever, "/bad": bad}
    what = request((Image(server.url("/forever")),), (Image(server.url("/bad")),))
    error = refused(what, limits=Limits(timeout=200))
    assert error.field == "documents[1].content[0]"
    assert gone.wait(30)


def test_cancelling_waits_until_the_thread_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a file is let go when its thread is done with it, and not before."""
    started, seen, release = threading.Event(), threading.Event(), threading.Event()

    def stubborn(*arguments: Any) -> Any:
        decoding = arguments[-2]
        started.set()
        while True:
            try:
                decoding.go_on()
            except BadMedia:
                seen.set()
                assert release.wait(30)
                raise

    monkeypatch.setattr(loader_module, "read_video", stubborn)
    data = films.film(films.MP4)

    async def run() -> None:
        with MediaLoader(VisionFormat(), access=OFFLINE) as loader:
            task = asyncio.create_task(loader.load(request((Video(data_uri(data)),))))
            assert await asyncio.to_thread(started.wait, 30)
            for _ in range(2):  # whoever asks twice gets it no sooner
                task.cancel()
                assert await asyncio.to_thread(seen.wait, 30)
                await asyncio.sleep(0)
            held = loader._memory
            assert not task.done()
            assert held.files.held >= len(data)
            assert held.shown.held > 0
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (held.files.held, held.decoding.held, held.shown.held) == (0, 0, 0)

    try:
        asyncio.run(run())
    finally:
        release.set()


def test_closing_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def endless(*arguments: Any) -> Any:
        started.set()
        while True:
            arguments[-2].go_on()

    monkeypatch.setattr(loader_module, "read_video", endless)

    async def run() -> None:
        loader = MediaLoader(VisionFormat(), access=OFFLINE)
        task = asyncio.create_task(loader.load(request((Video(data_uri(films.film(films.MP4))),))))
        assert await asyncio.to_thread(started.wait, 30)
        loader.close()
        with pytest.raises(InvalidRequest, match="cancelled"):
            await task

    asyncio.run(run())


def test_cancelling_while_waiting_for_memory_lets_others_by() -> None:
    async def run() -> None:
        with MediaLoader(VisionFormat(), access=OFFLINE) as loader:
            memory = loader._memory
            most = {budget: await budget.hold(budget.total) for budget in memory}
            for budget in (memory.shown, memory.files, memory.decoding):
                task = asyncio.create_task(loader.load(request((Image(data_uri(png())),))))
                while not budget._asked:
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                most[budget].release()
                assert budget.held == 0
            assert len((await loader.load(request((Image(data_uri(png())),)))).documents[0]) == 1

    asyncio.run(run())


def test_what_is_shown_counts_until_it_is_released() -> None:
    async def run() -> None:
        with MediaLoader(VisionFormat(), access=OFFLINE) as loader:
            loaded = await loader.load(request((Image(PICTURE),)))
            assert loader._memory.shown.held == 96 * 64 * 3
            loaded.release()
            assert loader._memory.shown.held == 0
            loaded = await loader.load(request((Image(PICTURE),)))
            del loaded
            assert loader._memory.shown.held == 0
            with pytest.raises(InvalidRequest):
                await loader.load(request((Image(PICTURE), BAD)))
            late = Video([PICTURE, PICTURE, "data:,x"])  # all of its frames are counted before the last one fails
            loaded = await loader.load(request((late,)), skip_bad_documents=True)
            assert list(loaded.failed) == [0]
            assert [budget.held for budget in loader._memory] == [0, 0, 0]

    asyncio.run(run())


def jpeg(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pattern(*size, seed)).save(buffer, "JPEG")
    return buffer.getvalue()


def frames_uri(*frames: bytes, kind: str = "video/jpeg") -> str:
    return f"data:{kind};base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)


@pytest.mark.parametrize(("count", "max_frames"), [(1, 64), (2, 64), (5, 64), (20, 7)])
def test_vllms_list_of_jpegs_is_the_list_of_frames(count: int, max_frames: int) -> None:
    files = [jpeg(seed) for seed in range(count)]
    pictures = [PIL.Image.open(io.BytesIO(file)) for file in files]
    parts = [Video(source, max_frames=max_frames) for source in (frames_uri(*files), pictures)]
    joined, listed = load(request(tuple(parts))).documents[0]
    assert joined.digest == listed.digest
    assert joined.seconds == listed.seconds
    assert joined.seconds[0] == 0.25
    assert np.array_equal(joined.frames, listed.frames)


@pytest.mark.parametrize("kind", ["Video/JPEG", "video/jpeg;charset=binary"])
def test_vllms_list_in_other_spelling(kind: str) -> None:
    files = [jpeg(1), jpeg(2)]
    (loaded,) = load(request((Video(frames_uri(*files, kind=kind)),))).documents[0]
    assert loaded.seconds == (0.25,)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        (frames_uri(), "frame 0: the data: URI is empty"),
        (frames_uri(jpeg(1)) + ",", "frame 1: the data: URI is empty"),
        (frames_uri(jpeg(1), b"text"), "frame 1: this is not an image"),
        (frames_uri(jpeg(1), jpeg(1)[:400]), "frame 1: the picture's header is damaged (Truncated File Read)"),
        (frames_uri(jpeg(1), jpeg(1, (300, 64))), "frame 1 has another shape than frame 0"),
        (frames_uri(films.film(films.MP4)), "frame 0: this is a video, not an image"),
        ("data:video/jpeg;base64," + 1200 * ",", "the list holds 1,201 frames, over the limit of 1,200"),
        (frames_uri(jpeg(1), bytes(1 << 20)), "frame 1: the file is over the limit of 1.0 MiB"),
        (frames_uri(jpeg(1), jpeg(2), kind="video/png"), "not valid base64"),
    ],
)
def test_vllms_list_that_cannot_be_read(uri: str, problem: str) -> None:
    error = refused(request((Video(uri),)), limits=Limits(image_bytes=(1 << 20) - 1))
    assert error.field == "documents[0].content[0]"
    assert problem in error.problem


def test_the_limit_for_listed_frames_is_that_for_seconds() -> None:
    what = request((Video([PICTURE] * 9),))
    assert len(load(what, limits=Limits(video_seconds=4.5)).documents[0][0].frames) == 10
    assert "9 frames, over the limit of 8" in refused(what, limits=Limits(video_seconds=4.0)).problem


def test_what_a_server_calls_a_file_is_told_and_nothing_of_it(server: Server) -> None:
    server.answers["/login"] = ok(b"<html>secret", "Content-Type: text/html; charset=utf-8")
    for part in (Image(server.url("/login")), Video(server.url("/login"))):
        error = refused(request((part,)))
        assert "it is another file, of 12 bytes; its server calls it text/html" in error.problem
        assert "secret" not in error.problem


async def test_blocking_works_within_an_event_loop() -> None:
    assert load(request((Image(PICTURE),))).documents[0][0].tokens == 6


async def test_decoding_is_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    inner = loader_module.open_image

    def noting(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name)
        return inner(*arguments)

    monkeypatch.setattr(loader_module, "open_image", noting)
    with MediaLoader(VisionFormat(), access=OFFLINE) as loader:
        await loader.load(request((Image(data_uri(png())),)))
    (name,) = threads
    assert name.startswith("rerankd-media")


async def test_many_requests_at_once_get_their_own(server: Server) -> None:
    for shade in range(20):
        server.answers[f"/{shade}.png"] = ok(png(PIL.Image.new("RGB", (64, 64), (shade, 0, 0))))
    with MediaLoader(VisionFormat(), access=OFFLINE) as loader:
        loaded = await asyncio.gather(
            *(loader.load(request(*[(Image(server.url(f"/{shade}.png")),)] * 3)) for shade in range(20))
        )
    for shade, one in enumerate(loaded):
        assert [document[0].frames[0, 0, 0, 0] for document in one.documents] == [shade] * 3


def test_one_loader_serves_several_event_loops() -> None:
    with MediaLoader(VisionFormat(), access=OFFLINE) as loader:
        for _ in range(3):
            assert asyncio.run(loader.load(request((Image(PICTURE),)))).documents[0][0].tokens == 6
            assert loader.load_blocking(request((Image(PICTURE),))).documents[0][0].tokens == 6


def test_the_room_imports_no_torch() -> None:
    code = (
        "import sys, rerankd.media.loader; print(sorted({'torch', 'transformers', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
