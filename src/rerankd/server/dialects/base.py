"""The parts of every dialect: endpoints that parse a body into requests and render the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from rerankd.core import EngineLoad, RerankRequest, TextToken
from rerankd.limits import RequestLimits
from rerankd.server.problems import Problem

if TYPE_CHECKING:
    from rerankd.options import ModelInfo

Body = TypeVar("Body", bound=BaseModel)
ERRORS: Mapping[int, str] = {
    400: "a missing or wrong field, a prompt too long where cutting is not allowed, or more than the server's limits",
    401: "no API key, or a wrong one, where the server wants one",
    408: "a body that did not arrive in time",
    413: "a body above the server's limit",
    415: "a Content-Type that is not application/json, or a compressed body",
    429: "more calls or tokens at a time than the server takes, or bodies larger together than it holds",
    500: "a failure of the model or the server",
    504: "no answer within the server's time",
    503: "the server is shutting down, or its engine has failed",
}


@dataclass(frozen=True, slots=True)
class Served:
    """The facts about the server and one of its models that a dialect may use.

    names: of the model, the main name first
    tokenize: a text's tokens, with special tokens where the flag says so; may be slow
    decode: the text of tokens, without special tokens where the flag says so; may be slow. Raises InvalidRequest
    running: how many calls are being answered
    load: the load of the engine
    unready: why no call is answered now; None while calls are
    asleep: whether calls of this model are refused, those of others or not
    max_calls: how many calls are answered at a time; None for any number
    max_queued_calls: how many of them wait for the model
    limits: of one request
    all_names: those of all models of the server, this one's among them; empty where there is one model
    """

    names: tuple[str, ...]
    info: ModelInfo
    tokenize: Callable[[str, bool], list[TextToken]]
    decode: Callable[[Sequence[int], bool], str]
    running: Callable[[], int]
    load: Callable[[], EngineLoad]
    unready: Callable[[], Problem | None] = lambda: None
    asleep: Callable[[], bool] = lambda: False
    max_calls: int | None = None
    max_queued_calls: int | None = None
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    all_names: tuple[str, ...] = ()


class Nothing(BaseModel):
    """The body of an endpoint that reads none. A subclass has the fields that a path gives."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """A parsed body: the requests to answer, and the given fields without effect.

    id: the caller's own name for the call, None for a random one
    fields: the caller's words for fields of `RerankRequest`, where they differ
    places: for each request, where its documents lie in the body; empty where the body holds one request in order
    """

    body: Body
    requests: tuple[RerankRequest, ...]
    ignored: tuple[str, ...] = ()
    id: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    places: tuple[tuple[int, ...], ...] = ()

    def place(self, request: int, document: int) -> int:
        """The place in the body of a request's document."""
        return self.places[request][document] if self.places else document

    def in_body(self, name: str, request: int) -> str:
        """A field of a request (`documents[3]`, `query`), with the index that it has in the body."""
        if not self.places:
            return name
        if name == "query":
            return f"query[{self.places[request][0]}]" if len(self.places) > 1 else name
        index = re.match(r"documents\[(\d+)\]", name)
        return f"documents[{self.place(request, int(index[1]))}]{name[index.end() :]}" if index else name

    def word(self, name: str) -> str:
        """The caller's word for a field of `RerankRequest`, as in `documents[3]` or `top_n`."""
        head = name.partition("[")[0].partition(".")[0]
        return self.fields.get(name) or self.fields.get(head, head) + name[len(head) :]


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Body]):
    """One operation of an API. It parses and renders; it awaits nothing.

    paths: below the dialect's prefix, and at the root where no dialect that goes first has them; two endpoints of a
        dialect may share one. `{model}` in a path is any name, which the body gets as its `model`
    body: the request's model, which allows fields of other names; a `Nothing` where no body is read
    reply: the type of the answer, for the OpenAPI document
    parse: raises Problem and InvalidRequest
    render: the answer as JSON-ready data, from the call, its requests' results and the answer's id; None is an
        empty answer. A large call is parsed and rendered in a thread.
    methods: the HTTP methods that it answers; HEAD comes with GET
    claims: whether a body is this endpoint's, where endpoints of its dialect share a path; the first of them has what
        none claims
    probe: whether it says only that the server is well, which needs no key
    id_prefix: what the ids of answers begin with
    examples: bodies that it answers, by what they show
    """

    paths: tuple[str, ...]
    summary: str
    body: type[Body]
    reply: Any
    parse: Callable[[Body, Served], Call[Body]]
    render: Callable[[Call[Body], Sequence[Any], str, Served], object]
    methods: tuple[str, ...] = ("POST",)
    claims: Callable[[Mapping[str, Any], Served], bool] = lambda sent, served: False
    probe: bool = False
    id_prefix: str = "rerank-"
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether it reads a body."""
        return not issubclass(self.body, Nothing)


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API that clients already speak.

    error: the type of an error's body
    render_error: an error's body as JSON-ready data
    errors: the statuses of its errors, and when they are given
    status: the status of a problem
    problems: examples of its own kinds of problem
    claims: whether a call (its body, its headers in lower case) has what only this API has
    """

    name: str
    endpoints: tuple[Endpoint[Any], ...]
    error: Any
    render_error: Callable[[Problem], object]
    errors: Mapping[int, str] = field(default_factory=lambda: ERRORS)
    status: Callable[[Problem], int] = attrgetter("status")
    problems: tuple[Problem, ...] = ()
    claims: Callable[[Mapping[str, Any], Mapping[str, str]], bool] = lambda sent, headers: False
