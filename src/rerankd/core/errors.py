"""Exceptions. An error that a user can act on says in one sentence what to do."""

from __future__ import annotations


class RerankdError(Exception):
    """Base of the errors that a user can act on; `str()` of one is a complete sentence."""


class ModelError(RerankdError):
    """A checkpoint cannot be found, read or served."""


class InvalidRequest(RerankdError, ValueError):
    """A request that cannot be answered as it stands.

    `field` names the offending request field in the words of `RerankRequest` (`query`, `documents[3]`,
    `instruction`, `top_n`, ...), so that a dialect can translate it to its own. `request` is its place among several.
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
    """Too much waits for the engine, so it refuses the request. A later request may be accepted."""


class EngineDead(EngineClosed):
    """The engine has failed for good and answers no more requests. The cause is chained where there is one."""


class EngineError(RerankdError):
    """The model failed on the request; the cause is chained."""


class ReplicaLost(EngineError):
    """The processes that computed the request ended before it was answered. It may be sent again."""


class OutOfMemory(EngineError):
    """One document alone does not fit into memory; `str()` of the error says how large the document is."""
