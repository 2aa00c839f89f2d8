"""From a request's images and videos to what the model is shown of them."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import PIL.Image

from rerankd.core import Content, Image, InvalidRequest, RerankRequest, Video, Visuals, identity
from rerankd.media.budget import Budget, Lease
from rerankd.media.decoding import Decoding
from rerankd.media.fetch import Fetcher, Resolve, default_tls, system_resolver
from rerankd.media.frames import Pixels, listed, listed_memory, shrink
from rerankd.media.images import Opened, memory_of, open_image, resize, resize_memory, to_rgb
from rerankd.media.limits import BadMedia, Limits, NotRead, megabytes
from rerankd.media.sampling import LIST_FPS, list_indices, timestamps
from rerankd.media.sizing import FILE_TOTAL_PIXELS, FRAME_PAIR, LIST_TOTAL_PIXELS, Sizing
from rerankd.media.sources import Access, Frames, is_url, listed_frames, local_size, read_local
from rerankd.media.videos import read_video
from rerankd.media.visual import VisionFormat, Visual

_AT_ONCE = 8
"""Files of one request that are fetched or decoded at the same time: leaves room for other requests."""
_THREADS = 8
"""Files of all requests that are read from disk, decoded, or ready to be decoded at the same time."""
_LOOKUPS = 32
"""Host names of all requests that are looked up at the same time."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadedMedia:
    """A request's images and videos, in the order of their parts.

    `failed` holds the error of each document whose media cannot be used, by index; such a document's own
    entry in `documents` is to be disregarded. `held` is the memory that the visuals are counted in: released when
    they have been scored, and at the latest when nobody refers to this any more.
    """

    query: tuple[Visual, ...]
    documents: tuple[tuple[Visual, ...], ...]
    failed: Mapping[int, InvalidRequest]
    held: Lease | None = field(default=None, compare=False)

    @property
    def visuals(self) -> Visuals:
        """What was read, as prompts take it."""
        return Visuals(self.query, self.documents)

    def release(self) -> None:
        """Let other requests have the memory."""
        if self.held is not None:
            self.held.release()


class MediaLoader:
    """Fetches, decodes and resizes, in threads of its own and beside any event loop; thread-safe.

    All requests share `limits.memory`. A request first holds what its visuals may take, all at once; then each of its
    files holds its size, and then what decoding it takes. Who holds memory for decoding waits for no more, so that
    everybody gets on.
    """

    def __init__(
        self,
        form: VisionFormat,
        *,
        sizing: Sizing = Sizing(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
        access: Access = Access(),  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._form = form
        self._sizing = sizing
        self._limits = limits
        self._access = access
        self._tls = default_tls() if tls is None else tls
        self._memory = _Memory(
            files=Budget(limits.file_memory, "files"),
            decoding=Budget(limits.decode_memory, "decoding"),
            shown=Budget(limits.shown_memory, "what models are shown"),
        )
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="rerankd-media")
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="rerankd-lookup")
        self._resolve = system_resolver(self._lookups) if resolve is None else resolve

    async def load(self, request: RerankRequest, *, skip_bad_documents: bool = False) -> LoadedMedia:
        """All images and videos of a request. What occurs several times in it is read once.

        Raises InvalidRequest, with a field such as `documents[3].content[1]`, for media that cannot be used
        and for more parts than the limit. With `skip_bad_documents` a document's bad media are reported in
        `failed` instead. Cancelling the awaiting task ends the work; the task ends when the work has.
        """
        places = _places(request)
        if not places:
            return LoadedMedia((), ((),) * len(request.documents), {})
        if len(places) > self._limits.parts:
            raise InvalidRequest(
                "documents",
                f"the request holds {len(places)} images and videos, over the limit of {self._limits.parts}; "
                "send fewer documents at a time",
            )
        held = await self._memory.shown.hold(self._shown_at_most(places))
        try:
            async with Fetcher(self._limits, self._tls, self._resolve, self._access.allow_private) as fetcher:
                work = _Work(
                    self._form,
                    self._sizing,
                    self._limits,
                    self._access,
                    fetcher,
                    self._threads,
                    self._memory,
                    self._closing,
                )
                read = work.visual_or_error if skip_bad_documents else work.visual
                tasks: dict[Hashable, asyncio.Task[Visual | BadMedia]] = {}
                try:
                    for place in places:
                        if place.key not in tasks:
                            tasks[place.key] = asyncio.create_task(read(place.part))
                    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
                finally:
                    for task in tasks.values():
                        task.cancel()
                    await _ended(tasks.values())
            loaded = _collect(request, places, tasks, skip_bad_documents, held)
        except BaseException:
            held.release()
            raise
        held.shrink(work.shown)
        return loaded

    def _shown_at_most(self, places: Sequence[_Place]) -> int:
        """Bytes that the visuals of a request may take together; more than there are for all is refused later."""
        most = 0
        for part in {place.key: place.part for place in places}.values():
            with suppress(BadMedia):  # which is told of the part, when it is read
                most += 3 * int(_pixels_at_most(part, self._sizing))
        return min(most, self._limits.shown_memory)

    def load_blocking(self, request: RerankRequest, *, skip_bad_documents: bool = False) -> LoadedMedia:
        """As `load`, from code that may or may not run inside an event loop; blocks it."""
        if not _places(request):
            return LoadedMedia((), ((),) * len(request.documents), {})
        with ThreadPoolExecutor(1, thread_name_prefix="rerankd-media-loop") as thread:
            loading = self.load(request, skip_bad_documents=skip_bad_documents)
            return thread.submit(asyncio.run, loading).result()

    def close(self) -> None:
        """Let go of the threads; a load that is under way fails."""
        self._closing.set()
        for threads in (self._threads, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> MediaLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Memory(NamedTuple):
    files: Budget
    decoding: Budget
    shown: Budget


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of the request; `document` is None in the query. Parts with one key are the same picture."""

    document: int | None
    field: str
    part: Image | Video
    key: Hashable


def _places(request: RerankRequest) -> list[_Place]:
    contents: list[tuple[int | None, str, Content]] = [(None, "query", request.query)]
    contents += [(index, f"documents[{index}]", content) for index, content in enumerate(request.documents)]
    return [
        _Place(document, f"{field}.content[{position}]", part, identity(part))
        for document, field, content in contents
        for position, part in enumerate(content)
        if isinstance(part, Image | Video)
    ]


def _pixels_at_most(part: Image | Video, sizing: Sizing) -> float:
    """Pixels that a model is shown of a part at most. Raises BadMedia where the part's own values make no sense."""
    if isinstance(part, Image):
        return sizing.image_bounds(part)[1]
    _, frames = sizing.video_sampling(part)
    total = LIST_TOTAL_PIXELS if isinstance(part.source, (list, tuple)) else FILE_TOTAL_PIXELS
    frames += frames % FRAME_PAIR
    return frames * sizing.frame_bounds(frames, total)[1]


def _collect(
    request: RerankRequest,
    places: Sequence[_Place],
    tasks: Mapping[Hashable, asyncio.Task[Visual | BadMedia]],
    skip_bad_documents: bool,
    held: Lease,
) -> LoadedMedia:
    query: list[Visual] = []
    documents: list[list[Visual]] = [[] for _ in request.documents]
    failed: dict[int, InvalidRequest] = {}
    for place in places:
        task = tasks[place.key]
        if task.cancelled():  # only after another one failed
            continue
        found = task.exception() or task.result()
        if isinstance(found, Visual):
            (query if place.document is None else documents[place.document]).append(found)
        elif isinstance(found, BadMedia):
            problem = InvalidRequest(place.field, str(found))
            if place.document is None or not skip_bad_documents:
                raise problem from found
            failed.setdefault(place.document, problem)
        else:
            raise found
    return LoadedMedia(tuple(query), tuple(tuple(visuals) for visuals in documents), failed, held)


class _File(NamedTuple):
    """A file's bytes, and what the server that it came from calls it."""

    data: bytes
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class _Show(Generic[Result]):
    """What is made of a decoded picture; `memory` is what that takes, by the picture before it is decoded."""

    make: Callable[[PIL.Image.Image], Result]
    memory: Callable[[PIL.Image.Image], int]


class _Work:
    """The reading of one request's media: waiting in the event loop, everything else in threads.

    shown: bytes of the visuals so far
    """

    def __init__(
        self,
        form: VisionFormat,
        sizing: Sizing,
        limits: Limits,
        access: Access,
        fetcher: Fetcher,
        threads: ThreadPoolExecutor,
        memory: _Memory,
        closing: threading.Event,
    ) -> None:
        self._form = form
        self._sizing = sizing
        self._limits = limits
        self._access = access
        self._fetcher = fetcher
        self._threads = threads
        self._memory = memory
        self._closing = closing
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._counting = threading.Lock()
        self.shown = 0

    async def visual(self, part: Image | Video) -> Visual:
        """Raises BadMedia, and InvalidRequest once all that is read is too much together."""
        if isinstance(part, Image):
            return await self._image(part)
        frames = listed_frames(part.source, int(self._limits.video_seconds * LIST_FPS))
        return await self._video_file(part) if frames is None else await self._frame_list(part, frames)

    async def visual_or_error(self, part: Image | Video) -> Visual | BadMedia:
        try:
            return await self.visual(part)
        except BadMedia as error:
            return error

    @contextmanager
    def _claim(self, size: int) -> Iterator[None]:
        """Count `size` bytes among those that are shown, before they are held and unless they fail; in any thread."""
        with self._counting:
            self.shown += size
            fits = self.shown <= self._limits.shown_memory
        try:
            if not fits:
                raise self._too_much()
            yield
        except BaseException:
            with self._counting:
                self.shown -= size
            raise

    def _too_much(self) -> InvalidRequest:
        return InvalidRequest(
            "documents",
            f"the request's images and videos take more than {megabytes(self._limits.shown_memory)} together as the "
            "model is shown them; send fewer documents at a time, or smaller pictures (max_pixels, max_frames)",
        )

    async def _image(self, part: Image) -> Visual:
        low, high = self._sizing.image_bounds(part)
        factor = self._form.factor

        def show(image: PIL.Image.Image) -> Visual:
            pixels = np.array(resize(image, factor, low, high))
            with self._claim(pixels.nbytes):
                return Visual.of_image(pixels, self._form)

        return await self._picture(part.source, _Show(show, lambda image: resize_memory(image, factor, low, high)))

    async def _video_file(self, part: Video) -> Visual:
        fps, max_frames = self._sizing.video_sampling(part)

        def show(file: _File, decoding: Decoding) -> Visual:
            frames, seconds = read_video(
                file.data, self._form.factor, self._sizing, fps, max_frames, self._limits, decoding, self._claim
            )
            return Visual.of_video(frames, seconds, self._form)

        return await self._from_file(part.source, self._limits.video_bytes, show)

    async def _frame_list(self, part: Video, sources: Frames) -> Visual:
        _, max_frames = self._sizing.video_sampling(part)
        if not sources.total:
            raise BadMedia("the list of frames is empty")
        indices = list_indices(sources.total, max_frames)
        low, high = self._sizing.frame_bounds(len(indices), LIST_TOTAL_PIXELS)
        factor = self._form.factor

        def make(image: PIL.Image.Image) -> tuple[tuple[int, ...], Pixels]:
            frame = listed(image, factor)
            return frame.shape, shrink(frame, factor, low, high)

        show = _Show(make, lambda image: listed_memory(image, factor))

        async def read(index: int) -> tuple[tuple[int, ...], Pixels]:
            try:
                return await self._picture(sources.at(index), show)
            except BadMedia as error:
                raise BadMedia(f"frame {index}: {error}") from error

        # The first one tells the size of all, which are counted before they are read.
        first, frame = await read(indices[0])
        with self._claim(len(indices) * frame.nbytes):
            frames = np.empty((len(indices), *frame.shape), dtype=np.uint8)

            def lay(index: int, frame: Pixels) -> None:
                frames[[at for at, wanted in enumerate(indices) if wanted == index]] = frame

            async def follow(index: int) -> None:
                shape, frame = await read(index)
                if shape != first:
                    raise BadMedia(
                        f"frame {index} has another shape than frame 0 (near {shape[1]} x {shape[0]} and "
                        f"{first[1]} x {first[0]}); give all frames of a video one size"
                    )
                lay(index, frame)

            lay(indices[0], frame)
            await _all(follow, list(dict.fromkeys(indices))[1:])
        return Visual.of_video(frames, timestamps(range(len(indices)), LIST_FPS), self._form)

    async def _picture(self, source: object, show: _Show[Result]) -> Result:
        def shown(opened: Opened, decoding: Decoding) -> Result:
            with decoding.room(opened.memory + show.memory(opened.image)):
                return show.make(to_rgb(opened.image, self._limits))

        def read(file: _File, decoding: Decoding) -> Result:
            return shown(open_image(file.data, self._limits, decoding), decoding)

        if isinstance(source, PIL.Image.Image):
            async with self._gate:
                self._limits.check_pixels(*source.size)
                return await self._in_thread(partial(shown, Opened(source, memory_of(source))))
        return await self._from_file(source, self._limits.image_bytes, read)

    async def _from_file(self, source: object, limit: int, read: Callable[[_File, Decoding], Result]) -> Result:
        async with self._gate, self._file(source, limit) as file:
            try:
                return await self._in_thread(partial(read, file))
            except NotRead as error:
                if file.media_type is None:
                    raise
                raise NotRead(f"{error}; its server calls it {file.media_type}") from error

    @asynccontextmanager
    async def _file(self, source: object, limit: int) -> AsyncIterator[_File]:
        """A file, counted while it is held."""
        if is_url(source):
            data, held, media_type = await self._fetcher.get(str(source), limit, self._memory.files)
        else:
            size = await self._in_thread(lambda _: local_size(source, self._access))
            held, media_type = await self._memory.files.hold(min(size, limit)), None
        try:
            if not is_url(source):
                data = await self._in_thread(lambda decoding: read_local(source, limit, self._access, decoding.go_on))
            yield _File(data, media_type)
        finally:
            held.release()

    async def _in_thread(self, work: Callable[[Decoding], Result]) -> Result:
        """What `work` returns; a task that is cancelled meanwhile ends when the thread has stopped."""
        decoding = Decoding(self._memory.decoding, self._limits.decode_timeout, self._closing)
        running = self._threads.submit(work, decoding)
        waiting = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            decoding.cancel()
            running.cancel()
            await _ended([waiting])
            raise


async def _all(work: Callable[[int], Awaitable[None]], items: Sequence[int]) -> None:
    """The first failure cancels what has not begun."""
    tasks = [asyncio.ensure_future(work(item)) for item in items]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await _ended(tasks)


async def _ended(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for futures whatever they end with, and whoever asks this task to end sooner: threads hold memory."""
    left = [future for future in futures if not future.done()]
    while left:
        with suppress(asyncio.CancelledError):
            await asyncio.wait(left)
        left = [future for future in left if not future.done()]
