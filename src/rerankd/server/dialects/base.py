"""What every dialect is made of: endpoints that parse a body into requests and render their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from rerankd.core import RerankRequest, RerankResult
from rerankd.server.problems import Problem

if TYPE_CHECKING:
    from rerankd.reranker import ModelInfo

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Served:
    """What a dialect may know of the server: the names a model answers to, the first of them first."""

    names: tuple[str, ...]
    info: ModelInfo


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """A parsed body: the requests to answer, and the fields that were given and have no effect.

    id: the caller's own name for the call, None for a random one
    fields: the caller's words for fields of `RerankRequest`, where they differ
    """

    body: Body
    requests: tuple[RerankRequest, ...]
    ignored: tuple[str, ...] = ()
    id: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def word(self, name: str) -> str:
        """The caller's word for a field of `RerankRequest`, as in `documents[3]` or `top_n`."""
        head = name.partition("[")[0].partition(".")[0]
        return self.fields.get(name) or self.fields.get(head, head) + name[len(head) :]


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Body]):
    """One operation of an API. It parses and renders; it awaits nothing.

    paths: below the dialect's prefix, and at the root for the server's own dialect
    body: the request's model, which allows fields of other names
    reply: the type of the answer, for the OpenAPI document
    parse: raises Problem and InvalidRequest
    render: the answer as JSON-ready data, from the call, its requests' results and the answer's id
    """

    paths: tuple[str, ...]
    summary: str
    body: type[Body]
    reply: Any
    parse: Callable[[Body, Served], Call[Body]]
    render: Callable[[Call[Body], Sequence[RerankResult], str, Served], object]


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API that clients already speak.

    error: the type of an error's body
    render_error: an error's body as JSON-ready data
    """

    name: str
    endpoints: tuple[Endpoint[Any], ...]
    error: type[BaseModel]
    render_error: Callable[[Problem], object]
