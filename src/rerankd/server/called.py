"""Facts about a call, collected while it is answered."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from rerankd.core import RerankResult

ID_LIMIT = 200
NO_ROUTE = "none"

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the call that is being answered, for log lines of code that does not know the call."""


@dataclass(slots=True)
class Called:
    """Facts about a call, filled in while it is answered; an HTTP request has its own as `state.called`.

    route: the route's path, once the answer is there; "none" for a path without a route
    dialect: the API of the answer; None for the server's own routes
    model: the model that answers, if there are several
    """

    id: str
    route: str = NO_ROUTE
    dialect: str | None = None
    model: str | None = None
    results: Sequence[RerankResult] = ()

    @classmethod
    def named(cls, id: str | None) -> Called:
        """A call with the given id, or a random one for None."""
        called = cls("")
        called.rename(id or secrets.token_hex(8))
        return called

    def rename(self, id: str) -> None:
        """Give the call another id."""
        self.id = id
        request_id.set(self.header_id())

    def header_id(self) -> str:
        """The id as a header's value: a body's may be any text, a header's is printable ASCII."""
        # The id in a body may have megabytes, and this method runs several times for each call.
        id = self.id[:ID_LIMIT]
        printable = id if id.isascii() and id.isprintable() else json.dumps(id)
        return printable[:ID_LIMIT]
