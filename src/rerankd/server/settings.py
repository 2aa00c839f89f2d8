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
    """Permissions for pages of other origins; `("*",)` means all."""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server serves its models.

    names: the names of a model that belongs to no pool, the main name first
    dialect: the dialect at the root
    max_body: the most bytes of a request's body
    max_bodies: the most bytes of the bodies of all calls in progress
    body_timeout: seconds in which a body must arrive
    limits: limits on the size of one request
    docs: whether /docs and /openapi.json are there
    keys: the keys of clients; empty for a server without keys
    protect_all: whether health probes and /metrics need a key too
    cors: permissions for pages of other origins; None for none
    root_path: the path that a proxy puts before every path
    max_calls: the most calls in progress; further calls get 429; None for no limit
    max_queued_calls, max_queued_tokens: the most calls, and the most of their tokens, that wait for the model; None for
        no limit
    request_timeout: seconds from a call's body to its answer; None for no limit
    traces: makes spans of calls; None for no traces
    draining: is set when the server shuts down and new calls are to be refused
    playground: whether / and /playground are there
    vllm_metrics: whether /metrics has vLLM's names too
    sleep_routes: whether /sleep, /wake_up and /is_sleeping are there
    shutdown_timeout: seconds that calls in progress have at the end
    labels: further labels of each series of /metrics, by name
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
    memory: the most bytes of the weights of all loaded models; None for no limit
    sleep_routes: whether a caller may unload and load models
    """

    first_use: bool = False
    idle_unload: float | None = None
    memory: int | None = None
    sleep_routes: bool = False
