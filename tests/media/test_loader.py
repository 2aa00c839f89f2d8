"""From requests to what models are shown of their images and videos."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from rerankd.core import Content, Image, InvalidRequest, RerankRequest, Text, Video, text_content
from rerankd.media import reading
from rerankd.media.limits import MediaLimits
from rerankd.media.loader import MediaLoader
from rerankd.media.places import LoadedMedia
from rerankd.media.sizing import Sizing
from rerankd.media.sources import Access
from rerankd.media.visual import VisionFormat
from tests.media import films
from tests.media.patterns import pattern
from tests.media.pictures import PICTURE, data_uri, png
from tests.media.servers import Server, ok

OFFLINE = Access(local_folders=None, allow_private=True)
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


def test_an_open_file_of_pil_is_decoded_by_one_thread(tmp_path: Path) -> None:
    """Whichever documents, sizes, requests and loaders want it: PIL decodes it when its pixels are first asked for."""
    path = tmp_path / "large.jpg"
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    PIL.Image.fromarray(pattern(1500, 1000)).save(path, exif=turned)
    sizes = [100_000, 200_000, 300_000]

    def digests(image: PIL.Image.Image) -> list[bytes]:
        loaded = load(request(*((Image(image, max_pixels=size),) for size in sizes)))
        return [document[0].digest for document in loaded.documents]

    with PIL.Image.open(path) as image:
        image.load()
        expected = digests(image)
    for _ in range(5):
        with PIL.Image.open(path) as image, ThreadPoolExecutor(2) as pool:
            assert [*pool.map(digests, [image, image])] == [expected, expected]


def test_an_image_without_pixels_is_refused() -> None:
    error = refused(request((Image(PIL.Image.new("RGB", (0, 0))),)))
    assert "0 x 0 are no pixels" in error.problem


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
        (request((Video([PICTURE, "data:,x"]),)), "documents[0].content[0]", "frame 1: this file of 1 bytes is"),
        (
            request((Video([PICTURE, PIL.Image.new("RGB", (400, 64))]),)),
            "documents[0].content[0]",
            "frame 1 has another size than frame 0",
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
        (Image(server.url("/a.png")), MediaLimits(image_bytes=100), "over the limit of 100 bytes"),
        (Image(data_uri(png())), MediaLimits(image_bytes=100), "over the limit of 100 bytes"),
        (Video(film), MediaLimits(video_bytes=200), "over the limit of 200 bytes"),
        (Image(PICTURE), MediaLimits(pixels=6143), "96 x 64 is 6,144 pixels, over the limit of 6,143"),
        (Video(film), MediaLimits(video_seconds=4.0), "5.0 seconds long, over the limit of 4"),
    ]:
        assert problem in refused(request((part,)), limits=limits).problem


def test_the_limit_for_parts() -> None:
    what = request((Image(PICTURE), Text("t")), (Video([PICTURE]),), query=(Image(PICTURE),))
    assert len(load(what, limits=MediaLimits(parts=3)).query) == 1
    error = refused(what, limits=MediaLimits(parts=2))
    assert error.field == "documents"
    assert "holds 3 images and videos, over the limit of 2" in error.problem


@pytest.mark.parametrize("skip", [False, True])
def test_the_limit_for_what_is_shown(skip: bool) -> None:
    """1152 x 1024 pixels take 3.4 MiB; three eighths of the memory hold eight; what occurs twice counts once."""
    pictures = [PIL.Image.new("RGB", (1152, 1024), (shade, 0, 0)) for shade in range(8)]
    parts = [(Image(picture),) for picture in (*pictures, pictures[0])]
    what = request(*parts, *([(BAD,)] if skip else []))
    enough = 8 * 1152 * 1024 * 3 * 8 // 3
    assert len(load(what, skip=skip, limits=MediaLimits(memory=enough)).documents[8]) == 1
    error = refused(what, skip=skip, limits=MediaLimits(memory=enough - 8))
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


def test_what_a_server_calls_a_file_is_told_and_nothing_of_it(server: Server) -> None:
    server.answers["/login"] = ok(b"<html>secret", "Content-Type: text/html; charset=utf-8")
    for part in (Image(server.url("/login")), Video(server.url("/login"))):
        error = refused(request((part,)))
        assert "this file of 12 bytes is not " in error.problem
        assert "its server calls it text/html" in error.problem
        assert "secret" not in error.problem


async def test_blocking_works_within_an_event_loop() -> None:
    assert load(request((Image(PICTURE),))).documents[0][0].tokens == 6


async def test_decoding_is_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    inner = reading.open_image

    def noting(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name)
        return inner(*arguments)

    monkeypatch.setattr(reading, "open_image", noting)
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


def test_the_loader_imports_no_torch() -> None:
    code = (
        "import sys, rerankd.media.loader; print(sorted({'torch', 'transformers', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
