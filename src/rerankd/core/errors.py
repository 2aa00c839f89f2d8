"""Exceptions. An error that a user can act on says in one sentence what to do."""

from __future__ import annotations


class RerankdError(Exception):
    """Base of the errors that a user can act on; `str()` of an error is a complete sentence."""


class ModelError(RerankdError):
    """A checkpoint cannot be found, read or served."""


class InvalidRequest(RerankdError, ValueError):
    """A request that cannot be answered.

    field: the wrong field, in the words of `RerankRequest` (`query`, `documents[3]`, `instruction`, `top_n`, ...); a
        dialect translates the name to its own
    problem: the rest of the message, which says what is wrong and how to change it
    request: the index of the request among several
    """

    def __init__(self, field: str, problem: str, request: int = 0) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.request = request

    def __reduce__(self) -> tuple[type[InvalidRequest], tuple[str, str, int]]:
        return type(self), (self.field, self.problem, self.request)


class EngineClosed(RerankdError):
    """The engine was closed before the request was answered."""


class EngineBusy(RerankdError):
    """The engine's queue is full, so it refuses the request. A later request may be accepted."""


class EngineDead(EngineClosed):
    """The engine has failed for good and answers no more requests. The cause is chained if there is one."""


class EngineError(RerankdError):
    """The model failed on the request; the cause is chained."""


class ReplicaLost(EngineError):
    """The processes that computed the request ended before it was answered. The request may be sent again."""


class OutOfMemory(EngineError):
    """One document alone does not fit into memory; `str()` of the error says how large the document is."""
