"""Loading of a request's images and videos: from their sources to resized pixels."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from rerankd.core import Image, InvalidRequest, RerankRequest, Video
from rerankd.media.budget import Budget
from rerankd.media.fetch import Fetcher, Resolve, default_tls, system_resolver
from rerankd.media.limits import BadMedia, MediaLimits
from rerankd.media.places import LoadedMedia, Place, collect, places_of
from rerankd.media.reading import Memory, Reading
from rerankd.media.sizing import FILE_TOTAL_PIXELS, FRAME_PAIR, LIST_TOTAL_PIXELS, Sizing
from rerankd.media.sources import Access
from rerankd.media.visual import ResizedVisual, VisionFormat
from rerankd.media.waiting import ended

_THREADS = 8
"""Number of files of all requests that are read from disk or decoded at the same time."""
_LOOKUPS = 32
"""Number of host names of all requests that are looked up at the same time."""


class MediaLoader:
    """Fetches, decodes and resizes images and videos, in a pool of threads. Thread-safe, for any event loop.

    All requests share `limits.memory`. A request first reserves memory for all its resized pixels together. Each of its
    files then reserves its size, and after that the memory for decoding. A thread that holds memory for decoding waits
    for no further memory, so that requests cannot block each other forever.
    """

    def __init__(
        self,
        form: VisionFormat,
        *,
        sizing: Sizing = Sizing(),  # noqa: B008 - frozen
        limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
        access: Access = Access(),  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._form = form
        self._sizing = sizing
        self._limits = limits
        self._access = access
        self._tls = default_tls() if tls is None else tls
        self._memory = Memory(
            files=Budget(limits.file_memory, "files"),
            decoding=Budget(limits.decode_memory, "decoding"),
            pixels=Budget(limits.pixel_memory, "resized pixels"),
        )
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="rerankd-media")
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="rerankd-lookup")
        self._resolve = system_resolver(self._lookups) if resolve is None else resolve

    async def load(self, request: RerankRequest, *, skip_bad_documents: bool = False) -> LoadedMedia:
        """Load all images and videos of a request. Equal sources are read once.

        skip_bad_documents: report a document whose media cannot be used in `failed`, instead of raising an error

        Raises InvalidRequest, with a field such as `documents[3].content[1]`, for media that cannot be used, and for
        too many parts. If the awaiting task is cancelled, the work is stopped, and the task ends after the work.
        """
        places = places_of(request)
        if not places:
            return LoadedMedia((), ((),) * len(request.documents), {})
        if len(places) > self._limits.parts:
            raise InvalidRequest(
                "documents",
                f"the request holds {len(places)} images and videos, over the limit of {self._limits.parts}; "
                "send fewer documents at a time",
            )
        lease = await self._memory.pixels.hold(self._pixel_bytes_at_most(places))
        try:
            async with Fetcher(self._limits, self._tls, self._resolve, self._access.allow_private) as fetcher:
                reading = Reading(
                    self._form,
                    self._sizing,
                    self._limits,
                    self._access,
                    fetcher,
                    self._threads,
                    self._memory,
                    self._closing,
                )
                read_part = reading.visual_or_error if skip_bad_documents else reading.visual
                tasks: dict[Hashable, asyncio.Task[ResizedVisual | BadMedia]] = {}
                try:
                    for place in places:
                        if place.key not in tasks:
                            tasks[place.key] = asyncio.create_task(read_part(place.part))
                    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
                finally:
                    for task in tasks.values():
                        task.cancel()
                    await ended(tasks.values())
            loaded = collect(request, places, tasks, skip_bad_documents, lease)
        except BaseException:
            lease.release()
            raise
        lease.shrink(reading.pixel_bytes)
        return loaded

    def _pixel_bytes_at_most(self, places: Sequence[Place]) -> int:
        """Most bytes that the resized pixels of a request may take, but not more than the whole budget.

        A request that turns out to need more is refused while it is read.
        """
        total = 0
        for part in {place.key: place.part for place in places}.values():
            with suppress(BadMedia):  # raised again when the part is read, with its field
                total += 3 * int(_pixels_at_most(part, self._sizing))
        return min(total, self._limits.pixel_memory)

    def load_blocking(self, request: RerankRequest, *, skip_bad_documents: bool = False) -> LoadedMedia:
        """Like `load`, but blocks. May be called inside and outside of an event loop."""
        if not places_of(request):
            return LoadedMedia((), ((),) * len(request.documents), {})
        with ThreadPoolExecutor(1, thread_name_prefix="rerankd-media-loop") as thread:
            loading = self.load(request, skip_bad_documents=skip_bad_documents)
            return thread.submit(asyncio.run, loading).result()

    def close(self) -> None:
        """Stop the threads. Loads in progress fail."""
        self._closing.set()
        for threads in (self._threads, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> MediaLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pixels_at_most(part: Image | Video, sizing: Sizing) -> float:
    """Most resized pixels of an image or video. Raises BadMedia for invalid settings of the part."""
    if isinstance(part, Image):
        return sizing.image_bounds(part)[1]
    _, frames = sizing.video_sampling(part)
    total = LIST_TOTAL_PIXELS if isinstance(part.source, (list, tuple)) else FILE_TOTAL_PIXELS
    frames += frames % FRAME_PAIR
    return frames * sizing.frame_bounds(frames, total)[1]
