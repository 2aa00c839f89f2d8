"""The places of images and videos in a request, and the loaded media of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from rerankd.core import Content, Image, InvalidRequest, RerankRequest, Video, Visuals, identity
from rerankd.media.budget import Lease
from rerankd.media.limits import BadMedia
from rerankd.media.visual import ResizedVisual


@dataclass(frozen=True, slots=True)
class LoadedMedia:
    """A request's images and videos, in the order of their parts.

    `failed` holds the error of each document whose media cannot be used, by index; the entry of such a document in
    `documents` has no meaning. `held` is the memory that the visuals are counted in: released when
    they have been scored, and at the latest when nobody refers to this any more.
    """

    query: tuple[ResizedVisual, ...]
    documents: tuple[tuple[ResizedVisual, ...], ...]
    failed: Mapping[int, InvalidRequest]
    held: Lease | None = field(default=None, compare=False)

    @property
    def visuals(self) -> Visuals:
        """The visuals, as prompts take them."""
        return Visuals(self.query, self.documents)

    def release(self) -> None:
        """Let other requests have the memory."""
        if self.held is not None:
            self.held.release()


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the request; `document` is None in the query. Parts with one key are the same picture."""

    document: int | None
    field: str
    part: Image | Video
    key: Hashable


def places_of(request: RerankRequest) -> list[Place]:
    """The places of a request's images and videos, in order."""
    contents: list[tuple[int | None, str, Content]] = [(None, "query", request.query)]
    contents += [(index, f"documents[{index}]", content) for index, content in enumerate(request.documents)]
    return [
        Place(document, f"{field}.content[{position}]", part, identity(part))
        for document, field, content in contents
        for position, part in enumerate(content)
        if isinstance(part, Image | Video)
    ]


def collect(
    request: RerankRequest,
    places: Sequence[Place],
    tasks: Mapping[Hashable, asyncio.Task[ResizedVisual | BadMedia]],
    skip_bad_documents: bool,
    held: Lease,
) -> LoadedMedia:
    """Sort the visuals into the query and the documents. Raises InvalidRequest for the first part that cannot be used.

    tasks: the reading of each part, by its key
    skip_bad_documents: to report a document's bad media in `failed` instead
    """
    query: list[ResizedVisual] = []
    documents: list[list[ResizedVisual]] = [[] for _ in request.documents]
    failed: dict[int, InvalidRequest] = {}
    for place in places:
        task = tasks[place.key]
        if task.cancelled():  # only after another one failed
            continue
        found = task.exception() or task.result()
        if isinstance(found, ResizedVisual):
            (query if place.document is None else documents[place.document]).append(found)
        elif isinstance(found, BadMedia):
            problem = InvalidRequest(place.field, str(found))
            if place.document is None or not skip_bad_documents:
                raise problem from found
            failed.setdefault(place.document, problem)
        else:
            raise found
    return LoadedMedia(tuple(query), tuple(tuple(visuals) for visuals in documents), failed, held)
