"""From a request's images and videos to what the model is shown of them."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import numpy as np
import PIL.Image

from rerankd.core import Content, Image, InvalidRequest, RerankRequest, Text, Video, Visuals, identity
from rerankd.media.fetch import Fetcher, Resolve, default_tls, system_resolver
from rerankd.media.frames import Pixels, listed, shrink
from rerankd.media.images import open_image, resize, to_rgb
from rerankd.media.limits import BadMedia, Limits, megabytes
from rerankd.media.sampling import LIST_FPS, list_indices, timestamps
from rerankd.media.sizing import LIST_TOTAL_PIXELS, Sizing
from rerankd.media.sources import Access, is_url, read_local
from rerankd.media.videos import read_video
from rerankd.media.visual import VisionFormat, Visual

_AT_ONCE = 8
"""Files of one request that are fetched or decoded at the same time: bounds what is held undecoded."""
_LOOKUPS = 32
"""Host names of all requests that are looked up at the same time."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadedMedia:
    """A request's images and videos, in the order of their parts.

    `failed` holds the error of each document whose media cannot be used, by index; such a document's own
    entry in `documents` is to be disregarded.
    """

    query: tuple[Visual, ...]
    documents: tuple[tuple[Visual, ...], ...]
    failed: Mapping[int, InvalidRequest]

    @property
    def visuals(self) -> Visuals:
        """What was read, as prompts take it."""
        return Visuals(self.query, self.documents)


class MediaLoader:
    """Fetches, decodes and resizes, in threads of its own and beside any event loop; thread-safe."""

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
        self._threads = ThreadPoolExecutor(thread_name_prefix="rerankd-media")
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="rerankd-lookup")
        self._resolve = system_resolver(self._lookups) if resolve is None else resolve

    async def load(self, request: RerankRequest, *, skip_bad_documents: bool = False) -> LoadedMedia:
        """All images and videos of a request. What occurs several times in it is read once.

        Raises InvalidRequest, with a field such as `documents[3].content[1]`, for media that cannot be used
        and for more parts than the limit. With `skip_bad_documents` a document's bad media are reported in
        `failed` instead. Cancelling the awaiting task ends the work.
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
        async with Fetcher(self._limits, self._tls, self._resolve, self._access.allow_private) as fetcher:
            work = _Work(self._form, self._sizing, self._limits, self._access, fetcher, self._threads)
            read = work.visual_or_error if skip_bad_documents else work.visual
            tasks: dict[Hashable, asyncio.Task[Visual | BadMedia]] = {}
            try:
                for place in places:
                    if place.key not in tasks:
                        tasks[place.key] = asyncio.create_task(read(place.part))
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            finally:
                work.cancelled.set()
                for task in tasks.values():
                    task.cancel()
                await asyncio.gather(*tasks.values(), return_exceptions=True)
        return _collect(request, places, tasks, skip_bad_documents)

    def load_blocking(self, request: RerankRequest, *, skip_bad_documents: bool = False) -> LoadedMedia:
        """As `load`, from code that may or may not run inside an event loop; blocks it."""
        if not _places(request):
            return LoadedMedia((), ((),) * len(request.documents), {})
        with ThreadPoolExecutor(1, thread_name_prefix="rerankd-media-loop") as thread:
            loading = self.load(request, skip_bad_documents=skip_bad_documents)
            return thread.submit(asyncio.run, loading).result()

    def close(self) -> None:
        """Let go of the threads; a load that is under way fails."""
        for threads in (self._threads, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> MediaLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
        if not isinstance(part, Text)
    ]


def _collect(
    request: RerankRequest,
    places: Sequence[_Place],
    tasks: Mapping[Hashable, asyncio.Task[Visual | BadMedia]],
    skip_bad_documents: bool,
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
    return LoadedMedia(tuple(query), tuple(tuple(visuals) for visuals in documents), failed)


class _Work:
    """The reading of one request's media: waiting in the event loop, everything else in threads."""

    def __init__(
        self,
        form: VisionFormat,
        sizing: Sizing,
        limits: Limits,
        access: Access,
        fetcher: Fetcher,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._form = form
        self._sizing = sizing
        self._limits = limits
        self._access = access
        self._fetcher = fetcher
        self._threads = threads
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._shown = 0
        self.cancelled = threading.Event()

    async def visual(self, part: Image | Video) -> Visual:
        """Raises BadMedia, and InvalidRequest once all that was read is too much together."""
        visual = await self._read(part)
        self._shown += visual.frames.nbytes
        if self._shown > self._limits.shown_bytes:
            raise InvalidRequest(
                "documents",
                f"the request's images and videos take more than {megabytes(self._limits.shown_bytes)} together as the "
                "model is shown them; send fewer documents at a time, or smaller pictures (max_pixels, max_frames)",
            )
        return visual

    async def visual_or_error(self, part: Image | Video) -> Visual | BadMedia:
        try:
            return await self.visual(part)
        except BadMedia as error:
            return error

    async def _read(self, part: Image | Video) -> Visual:
        if isinstance(part, Image):
            return await self._image(part)
        if isinstance(part.source, (list, tuple)):
            return await self._frame_list(part, part.source)
        return await self._video_file(part)

    async def _image(self, part: Image) -> Visual:
        low, high = self._sizing.image_bounds(part)

        def show(image: PIL.Image.Image) -> Visual:
            return Visual.of_image(np.array(resize(image, self._form.factor, low, high)), self._form)

        return await self._picture(part.source, show)

    async def _video_file(self, part: Video) -> Visual:
        fps, max_frames = self._sizing.video_sampling(part)
        limit = self._limits.video_bytes

        def show(fetched: bytes | None) -> Visual:
            data = read_local(part.source, limit, self._access) if fetched is None else fetched
            frames, seconds = read_video(
                data, self._form.factor, self._sizing, fps, max_frames, self._limits, self.cancelled.is_set
            )
            return Visual.of_video(frames, seconds, self._form)

        async with self._gate:
            fetched = await self._fetcher.get(part.source, limit) if is_url(part.source) else None
            return await self._in_thread(lambda: show(fetched))

    async def _frame_list(self, part: Video, sources: Sequence[object]) -> Visual:
        _, max_frames = self._sizing.video_sampling(part)
        if not sources:
            raise BadMedia("the list of frames is empty")
        indices = list_indices(len(sources), max_frames)
        low, high = self._sizing.frame_bounds(len(indices), LIST_TOTAL_PIXELS)

        def show(image: PIL.Image.Image) -> tuple[tuple[int, ...], Pixels]:
            frame = listed(image, self._form.factor)
            return frame.shape, shrink(frame, self._form.factor, low, high)

        async def read(index: int) -> tuple[tuple[int, ...], Pixels]:
            try:
                return await self._picture(sources[index], show)
            except BadMedia as error:
                raise BadMedia(f"frame {index}: {error}") from error

        distinct = list(dict.fromkeys(indices))
        shown = dict(zip(distinct, await _all(read, distinct), strict=True))
        first = shown[indices[0]][0]
        for index, (shape, _) in shown.items():
            if shape != first:
                raise BadMedia(
                    f"frame {index} has another shape than frame 0 (near {shape[1]} x {shape[0]} and "
                    f"{first[1]} x {first[0]}); give all frames of a video one size"
                )
        frames = np.stack([shown[index][1] for index in indices])
        return Visual.of_video(frames, timestamps(range(len(frames)), LIST_FPS), self._form)

    async def _picture(self, source: object, show: Callable[[PIL.Image.Image], Result]) -> Result:
        limit = self._limits.image_bytes

        def read(fetched: bytes | None) -> Result:
            if isinstance(source, PIL.Image.Image):
                return show(to_rgb(source, self._limits))
            data = read_local(source, limit, self._access) if fetched is None else fetched
            return show(open_image(data, self._limits))

        async with self._gate:
            fetched = await self._fetcher.get(str(source), limit) if is_url(source) else None
            return await self._in_thread(lambda: read(fetched))

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _all(work: Callable[[int], Awaitable[Result]], items: Sequence[int]) -> list[Result]:
    """The results in order; the first failure cancels what has not begun."""
    tasks = [asyncio.ensure_future(work(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
