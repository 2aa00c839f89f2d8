"""How a model is served."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rerankd.limits import RequestLimits

if TYPE_CHECKING:
    from rerankd.server.tracing import Traces

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Cors:
    """Permissions for pages of other origins; `("*",)` stands for all."""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server serves its models.

    names: what a model is called that is no pool's, the first name first
    dialect: the one at the root
    max_body, max_bodies: the most bytes of a request's body, and of all that are being read or answered
    body_timeout: seconds in which a body must arrive
    limits: what one request may hold
    docs: whether /docs and /openapi.json are there
    keys: those that open the server; empty for an open one
    protect_all: whether health probes and /metrics want a key too
    cors: permissions for pages of other origins, if any
    root_path: what a proxy puts before every path
    max_calls: how many calls are answered at a time, more are refused; None for any number
    max_queued_calls, max_queued_tokens: how many of them, and how many tokens of theirs, wait for the model
    request_timeout: seconds from a call's body to its answer; None for any time
    traces: makes spans of calls, if set
    draining: set by whoever ends the server when new calls are to be refused
    playground: whether / and /playground are there
    vllm_metrics: whether /metrics has vLLM's names too
    sleep_routes: whether /sleep, /wake_up and /is_sleeping are there
    shutdown_timeout: seconds that calls have to end where they are waited for
    labels: what each series of /metrics has beside its own labels, by name
    """

    names: tuple[str, ...]
    dialect: str = "vllm"
    max_body: int = 64 * MEGABYTE
    max_bodies: int = 256 * MEGABYTE
    body_timeout: float = 60.0
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    docs: bool = True
    keys: tuple[str, ...] = ()
    protect_all: bool = False
    cors: Cors | None = None
    root_path: str = ""
    max_calls: int | None = None
    max_queued_calls: int | None = None
    max_queued_tokens: int | None = None
    request_timeout: float | None = None
    traces: Traces | None = None
    draining: threading.Event = field(default_factory=threading.Event)
    playground: bool = True
    vllm_metrics: bool = False
    sleep_routes: bool = False
    shutdown_timeout: float = 10.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Residence:
    """When models are in memory.

    first_use: whether a model is loaded for its first request, not at the start
    idle_unload: seconds without a request after which a model is unloaded; None for never
    memory: bytes that the weights of all loaded models have at most; None for any number
    sleep_routes: whether a caller may unload and load models
    """

    first_use: bool = False
    idle_unload: float | None = None
    memory: int | None = None
    sleep_routes: bool = False
