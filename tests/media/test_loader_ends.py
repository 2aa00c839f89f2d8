"""Loading that fails, is cancelled or closed, and the memory that it holds."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, BinaryIO

import pytest

from rerankd.core import Image, InvalidRequest, Video
from rerankd.media import reading
from rerankd.media.limits import BadMedia, MediaLimits
from rerankd.media.loader import MediaLoader
from rerankd.media.visual import VisionFormat
from tests.media import films
from tests.media.pictures import PICTURE, data_uri, png
from tests.media.servers import Server, ok
from tests.media.test_loader import BAD, OFFLINE, refused, request


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
    error = refused(what, limits=MediaLimits(timeout=200))
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

    monkeypatch.setattr(reading, "read_video", stubborn)
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
            assert held.pixels.held > 0
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (held.files.held, held.decoding.held, held.pixels.held) == (0, 0, 0)

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

    monkeypatch.setattr(reading, "read_video", endless)

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
            for budget in (memory.pixels, memory.files, memory.decoding):
                task = asyncio.create_task(loader.load(request((Image(data_uri(png())),))))
                while not budget._queue:
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
            assert loader._memory.pixels.held == 96 * 64 * 3
            loaded.release()
            assert loader._memory.pixels.held == 0
            loaded = await loader.load(request((Image(PICTURE),)))
            del loaded
            assert loader._memory.pixels.held == 0
            with pytest.raises(InvalidRequest):
                await loader.load(request((Image(PICTURE), BAD)))
            late = Video([PICTURE, PICTURE, "data:,x"])  # all of its frames are counted before the last one fails
            loaded = await loader.load(request((late,)), skip_bad_documents=True)
            assert list(loaded.failed) == [0]
            assert [budget.held for budget in loader._memory] == [0, 0, 0]

    asyncio.run(run())
