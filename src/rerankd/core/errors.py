"""Exceptions. What a user can act on says so in one sentence."""

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


class EngineClosed(RerankdError):
    """The engine was closed before the request was answered."""


class EngineBusy(RerankdError):
    """So much waits for the engine that it does not take the request; a later one it may."""


class EngineDead(EngineClosed):
    """The engine has failed for good: no request is answered any more. The cause is chained where there is one."""


class EngineError(RerankdError):
    """The model failed on the request; the cause is chained."""


class ReplicaLost(EngineError):
    """The processes that were to compute the request ended while they did; sent again, it may be answered."""


class OutOfMemory(EngineError):
    """One document alone is more than fits into memory; `str()` of it says how large it is."""
