"""Reads the images and videos of one request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import PIL.Image

from rerankd.core import Image, InvalidRequest, Video
from rerankd.media.budget import Budget
from rerankd.media.decoding import Decoding
from rerankd.media.fetch import Fetcher
from rerankd.media.frames import Pixels, listed_memory, resize_listed, shrink
from rerankd.media.images import Opened, lock_of, memory_of, open_image, resize, resize_memory, to_rgb
from rerankd.media.limits import BadMedia, MediaLimits, NotRead, megabytes
from rerankd.media.sampling import LIST_FPS, list_indices, timestamps
from rerankd.media.sizing import LIST_TOTAL_PIXELS, Sizing
from rerankd.media.sources import Access, Frames, is_url, listed_frames, local_size, read_local
from rerankd.media.videos import read_video
from rerankd.media.visual import ResizedVisual, VisionFormat
from rerankd.media.waiting import all_done, ended

_CONCURRENT_FILES = 8
"""Number of files of one request that are fetched or decoded at the same time, so that others have threads too."""

Result = TypeVar("Result")


class Memory(NamedTuple):
    """The memory that all requests share: for files, for decoding, and for resized pixels."""

    files: Budget
    decoding: Budget
    pixels: Budget


class _File(NamedTuple):
    """The bytes of a file, and the content type that its server gave; None if there is none."""

    data: bytes
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class _Use(Generic[Result]):
    """What to do with a decoded image.

    make: computes the result from the decoded image
    memory: most bytes that `make` needs, from the image before decoding
    """

    make: Callable[[PIL.Image.Image], Result]
    memory: Callable[[PIL.Image.Image], int]


class Reading:
    """Reads the images and videos of one request. The event loop only waits; all work is done in threads.

    pixel_bytes: bytes of resized pixels so far
    """

    def __init__(
        self,
        form: VisionFormat,
        sizing: Sizing,
        limits: MediaLimits,
        access: Access,
        fetcher: Fetcher,
        threads: ThreadPoolExecutor,
        memory: Memory,
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
        self._gate = asyncio.Semaphore(_CONCURRENT_FILES)
        self._counting = threading.Lock()
        self.pixel_bytes = 0

    async def visual(self, part: Image | Video) -> ResizedVisual:
        """Read an image or video. Raises BadMedia, and InvalidRequest if the request's parts are too large together."""
        if isinstance(part, Image):
            return await self._image(part)
        frames = listed_frames(part.source, int(self._limits.video_seconds * LIST_FPS))
        return await self._video_file(part) if frames is None else await self._frame_list(part, frames)

    async def visual_or_error(self, part: Image | Video) -> ResizedVisual | BadMedia:
        """Like `visual`, but returns a BadMedia instead of raising it."""
        try:
            return await self.visual(part)
        except BadMedia as error:
            return error

    @contextmanager
    def _claim(self, size: int) -> Iterator[None]:
        """Count `size` bytes of pixels before they are allocated. If the context raises, the count is undone."""
        with self._counting:
            self.pixel_bytes += size
            fits = self.pixel_bytes <= self._limits.pixel_memory
        try:
            if not fits:
                raise self._too_much()
            yield
        except BaseException:
            with self._counting:
                self.pixel_bytes -= size
            raise

    def _too_much(self) -> InvalidRequest:
        return InvalidRequest(
            "documents",
            f"the request's images and videos take more than {megabytes(self._limits.pixel_memory)} together after "
            "resizing; send fewer documents at a time, or smaller images (max_pixels, max_frames)",
        )

    async def _image(self, part: Image) -> ResizedVisual:
        bounds = self._form.factor, *self._sizing.image_bounds(part), self._sizing.least_side
        tiles = self._sizing.tiles

        def make(image: PIL.Image.Image) -> ResizedVisual:
            pixels = np.array(resize(image, *bounds))[None] if tiles is None else tiles.cut(image)
            with self._claim(pixels.nbytes):
                return ResizedVisual.of_tiles(pixels, self._form)

        return await self._decoded_image(
            part.source, _Use(make, tiles.memory if tiles else lambda image: resize_memory(image, *bounds))
        )

    async def _video_file(self, part: Video) -> ResizedVisual:
        fps, max_frames = self._sizing.video_sampling(part)

        def decode(file: _File, decoding: Decoding) -> ResizedVisual:
            frames, seconds = read_video(
                file.data, self._form.factor, self._sizing, fps, max_frames, self._limits, decoding, self._claim
            )
            return ResizedVisual.of_video(frames, seconds, self._form)

        return await self._from_file(part.source, self._limits.video_bytes, decode)

    async def _frame_list(self, part: Video, sources: Frames) -> ResizedVisual:
        _, max_frames = self._sizing.video_sampling(part)
        if not sources.total:
            raise BadMedia("the list of frames is empty")
        indices = list_indices(sources.total, max_frames)
        low, high = self._sizing.frame_bounds(len(indices), LIST_TOTAL_PIXELS)
        factor = self._form.factor

        def make(image: PIL.Image.Image) -> tuple[tuple[int, ...], Pixels]:
            frame = resize_listed(image, factor)
            return frame.shape, shrink(frame, factor, low, high)

        use = _Use(make, lambda image: listed_memory(image, factor))

        async def read(index: int) -> tuple[tuple[int, ...], Pixels]:
            try:
                return await self._decoded_image(sources.at(index), use)
            except BadMedia as error:
                raise BadMedia(f"frame {index}: {error}") from error

        # All frames must have the size of the first, so that their memory is known before the others are read.
        first, frame = await read(indices[0])
        with self._claim(len(indices) * frame.nbytes):
            frames = np.empty((len(indices), *frame.shape), dtype=np.uint8)

            def store(index: int, frame: Pixels) -> None:
                frames[[place for place, sampled in enumerate(indices) if sampled == index]] = frame

            async def read_further(index: int) -> None:
                shape, frame = await read(index)
                if shape != first:
                    raise BadMedia(
                        f"frame {index} has another size than frame 0 (near {shape[1]} x {shape[0]} and "
                        f"{first[1]} x {first[0]}); give all frames of a video one size"
                    )
                store(index, frame)

            store(indices[0], frame)
            await all_done(read_further, list(dict.fromkeys(indices))[1:])
        return ResizedVisual.of_video(frames, timestamps(range(len(indices)), LIST_FPS), self._form)

    async def _decoded_image(self, source: object, use: _Use[Result]) -> Result:
        def decode(opened: Opened, decoding: Decoding) -> Result:
            with decoding.holding(opened.memory + use.memory(opened.image)):
                return use.make(to_rgb(opened.image, self._limits))

        def read(file: _File, decoding: Decoding) -> Result:
            return decode(open_image(file.data, self._limits, decoding), decoding)

        def decode_callers(image: PIL.Image.Image, decoding: Decoding) -> Result:
            with lock_of(image):
                return decode(Opened(image, memory_of(image)), decoding)

        if isinstance(source, PIL.Image.Image):
            async with self._gate:
                self._limits.check_pixels(*source.size)
                return await self._in_thread(partial(decode_callers, source))
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
        """The bytes of a file. Their memory is reserved during the context."""
        if is_url(source):
            data, lease, media_type = await self._fetcher.get(str(source), limit, self._memory.files)
        else:
            size = await self._in_thread(lambda _: local_size(source, self._access))
            lease, media_type = await self._memory.files.hold(min(size, limit)), None
        try:
            if not is_url(source):
                data = await self._in_thread(lambda decoding: read_local(source, limit, self._access, decoding.go_on))
            yield _File(data, media_type)
        finally:
            lease.release()

    async def _in_thread(self, work: Callable[[Decoding], Result]) -> Result:
        """Run `work` in a thread. If the task is cancelled, it ends only after the thread has stopped."""
        decoding = Decoding(self._memory.decoding, self._limits.decode_timeout, self._closing)
        running = self._threads.submit(work, decoding)
        waiting = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            decoding.cancel()
            running.cancel()
            await ended([waiting])
            raise
