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
    """The loaded images and videos of a request, in the order of their parts.

    query, documents: of the query, and of each document
    failed: the error of each document whose media cannot be used, by index; the entry of such a document in `documents`
        must not be used
    lease: the memory that is reserved for the pixels, until they are scored
    """

    query: tuple[ResizedVisual, ...]
    documents: tuple[tuple[ResizedVisual, ...], ...]
    failed: Mapping[int, InvalidRequest]
    lease: Lease | None = field(default=None, compare=False)

    @property
    def visuals(self) -> Visuals:
        """The images and videos in the form that prompts need."""
        return Visuals(self.query, self.documents)

    def release(self) -> None:
        """Release the memory for other requests."""
        if self.lease is not None:
            self.lease.release()


@dataclass(frozen=True, slots=True)
class Place:
    """An image or video and its place in the request.

    document: index of the document; None for the query
    field: the name for errors
    key: equal for parts with the same source and settings
    """

    document: int | None
    field: str
    part: Image | Video
    key: Hashable


def places_of(request: RerankRequest) -> list[Place]:
    """The places of a request's images and videos, in the order of the query and then the documents."""
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
    lease: Lease,
) -> LoadedMedia:
    """Assign the images and videos to the query and the documents.

    tasks: the finished task of each part, by its key
    skip_bad_documents: report a document whose media cannot be used in `failed`, instead of raising an error

    Raises InvalidRequest for the first part that cannot be used.
    """
    query: list[ResizedVisual] = []
    documents: list[list[ResizedVisual]] = [[] for _ in request.documents]
    failed: dict[int, InvalidRequest] = {}
    for place in places:
        task = tasks[place.key]
        if task.cancelled():  # a task is cancelled only after another one failed
            continue
        outcome = task.exception() or task.result()
        if isinstance(outcome, ResizedVisual):
            (query if place.document is None else documents[place.document]).append(outcome)
        elif isinstance(outcome, BadMedia):
            problem = InvalidRequest(place.field, str(outcome))
            if place.document is None or not skip_bad_documents:
                raise problem from outcome
            failed.setdefault(place.document, problem)
        else:
            raise outcome
    return LoadedMedia(tuple(query), tuple(tuple(visuals) for visuals in documents), failed, lease)
