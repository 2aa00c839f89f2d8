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
from rerankd.server.body import parse_json
from rerankd.server.problems import Problem

if TYPE_CHECKING:
    from rerankd.options import ModelInfo

Body = TypeVar("Body", bound=BaseModel)
ALLOW_CUTS = "allow truncation"
"""Advice of `prompts/limits.py`."""
ERRORS: Mapping[int, str] = {
    400: "a missing or wrong field, a prompt too long where cutting is not allowed, or more than the server's limits",
    401: "no API key, or a wrong one, where the server wants one",
    408: "a body that did not arrive in time",
    413: "a body above the server's limit",
    415: "a Content-Type that is not application/json, none in a call from a browser, or a compressed body",
    429: "more calls or tokens at a time than the server takes, or bodies larger together than it holds",
    500: "a failure of the model or the server",
    504: "no answer within the server's time",
    503: "the server is shutting down, or its engine has failed",
}


@dataclass(frozen=True, slots=True)
class Served:
    """The facts about the server and one of its models that a dialect may use.

    names: the names of the model, the main name first
    tokenize: the tokens of a text, with special tokens if the flag is true; may be slow
    decode: the text of token ids, without special tokens if the flag is true; may be slow. Raises InvalidRequest
    running: the number of calls in progress
    load: the load of the engine
    unready: the reason why calls are refused now; None while they are answered
    asleep: whether calls of this model are refused because it sleeps
    max_calls: the most calls in progress; None for no limit
    max_queued_calls: the most calls that wait for the model; None for no limit
    limits: limits on one request
    all_names: the names of all models of the server; empty if there is only one model
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
    """The body of an endpoint that reads no body. A subclass has the fields of the path."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """A parsed body.

    body: the body itself
    requests: the requests to answer
    ignored: the names of given fields without effect
    id: the caller's id for the call; None for a random one
    fields: the caller's names of fields of `RerankRequest` that differ; for `truncation.allowed`, how to set it
    places: for each request, the indices of its documents in the body; empty if the body has one request in order
    """

    body: Body
    requests: tuple[RerankRequest, ...]
    ignored: tuple[str, ...] = ()
    id: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    places: tuple[tuple[int, ...], ...] = ()

    def place(self, request: int, document: int) -> int:
        """The index in the body of a request's document."""
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
        """The caller's name of a field of `RerankRequest`, such as `documents[3]` or `top_n`."""
        head = name.partition("[")[0].partition(".")[0]
        return self.fields.get(name) or self.fields.get(head, head) + name[len(head) :]

    def said(self, problem: str) -> str:
        """An `InvalidRequest`'s problem; where it advises to allow cuts, and the call says how, it says so too."""
        how = self.fields.get("truncation.allowed")
        return problem.replace(ALLOW_CUTS, f"{ALLOW_CUTS} ({how})") if how else problem


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Body]):
    """One operation of an API. It parses and renders; it awaits nothing.

    paths: the paths below the dialect's prefix, and at the root if no earlier dialect has them. A path with the
        prefix is there alone. Two endpoints of a
        dialect may share a path. `{model}` in a path is any name, which becomes the body's `model`
    body: the pydantic model of the body, which allows unknown fields; a `Nothing` if no body is read
    reply: the type of the answer, for the OpenAPI document
    parse: makes the call from a body; raises Problem and InvalidRequest
    render: the answer as JSON-ready data, from the call, the results of its requests and the id of the answer; None is
        an empty answer. A large call is parsed and rendered in a thread
    methods: the HTTP methods; GET includes HEAD
    claims: whether a body belongs to this endpoint, if endpoints of its dialect share a path; a body that none of them
        claims belongs to the first
    unpack: the fields of a body, from its bytes and its call's headers; raises Problem. Endpoints that share a path
        have the same
    binary_header: a header, in lower case, of bodies that hold binary data too: with it, a body may be called
        `application/octet-stream`
    probe: whether it only reports the health of the server, which needs no key
    id_prefix: the beginning of the ids of answers
    examples: bodies that it answers, by a description
    """

    paths: tuple[str, ...]
    summary: str
    body: type[Body]
    reply: Any
    parse: Callable[[Body, Served], Call[Body]]
    render: Callable[[Call[Body], Sequence[Any], str, Served], object]
    methods: tuple[str, ...] = ("POST",)
    claims: Callable[[Mapping[str, Any], Served], bool] = lambda fields, served: False
    unpack: Callable[[bytes | bytearray, Mapping[str, str], RequestLimits], dict[str, Any]] = (
        lambda body, headers, limits: parse_json(body, limits)
    )
    binary_header: str | None = None
    probe: bool = False
    id_prefix: str = "rerank-"
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether the endpoint reads a body."""
        return not issubclass(self.body, Nothing)


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API of another system, which clients already use.

    name: the name for `--dialect`, and the prefix of its routes
    endpoints: its operations
    error: the type of an error's body
    render_error: an error's body as JSON-ready data
    errors: the status codes of its errors, with their reasons
    status: the status code of a problem
    problems: examples of problems that only this API has
    claims: whether a call (its body, its headers in lower case) has a field or a header that only this API has
    """

    name: str
    endpoints: tuple[Endpoint[Any], ...]
    error: Any
    render_error: Callable[[Problem], object]
    errors: Mapping[int, str] = field(default_factory=lambda: ERRORS)
    status: Callable[[Problem], int] = attrgetter("status")
    problems: tuple[Problem, ...] = ()
    claims: Callable[[Mapping[str, Any], Mapping[str, str]], bool] = lambda fields, headers: False
