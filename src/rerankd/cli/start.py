"""From a command's options to a running server."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from rerankd.cli.default_model import default_model
from rerankd.cli.door import Door
from rerankd.cli.several import Entry
from rerankd.compat.flags import UsageProblem
from rerankd.core import EngineDead, RerankdError
from rerankd.limits import RequestLimits
from rerankd.media.limits import MediaLimits
from rerankd.server.settings import Residence
from rerankd.version import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI

    from rerankd.cli.hosting import Named
    from rerankd.server.pool import Model, Pool
    from rerankd.server.settings import Settings
    from rerankd.server.tei_grpc.server import GrpcServer
    from rerankd.server.tls import Tls
    from rerankd.server.tracing import Traces

log = logging.getLogger("rerankd")

LogLevel: TypeAlias = Literal["critical", "error", "warning", "info", "debug", "trace"]
LogFormat: TypeAlias = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class Media:
    """The sources of images and videos, and their sizes for the model.

    min_pixels, max_pixels: defaults for images; None for those in `shown`
    shown: fields of `media.sizing.Sizing`
    """

    local_folders: tuple[Path, ...] = ()
    allow_private: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sizing(self) -> dict[str, Any]:
        """`LoadOptions.media_sizing`."""
        pixels = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {**self.shown, **{name: count for name, count in pixels.items() if count is not None}}


@dataclass(frozen=True, slots=True)
class TracesTo:
    """The endpoint of traces from a flag, which overrides the environment; `options`: of the exporter."""

    endpoint: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """The model to serve, and how to serve it.

    model: None for the default model, or for the models of `more`
    more: further models, each with options of its own
    grpc_port: the port of TEI's gRPC API; None for no gRPC
    shutdown_timeout: seconds from a signal to the end of the process
    keep_alive: seconds that a connection may idle
    settings: fields of `Settings`, but those that are made of the others; without names the model is called as given
    loading: fields of `LoadOptions`, but the model and what the others say
    residence: when models are in memory
    door: who may call, and how a call comes in
    traces: None to do as the environment says
    """

    model: str | None
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    access_log: bool = True
    shutdown_timeout: float = 10.0
    keep_alive: float = 75.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)
    request_limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    media: Media = field(default_factory=Media)
    media_limits: MediaLimits = MediaLimits()  # noqa: RUF009 - frozen
    door: Door = Door()  # noqa: RUF009 - frozen
    traces: TracesTo | None = None
    residence: Residence = Residence()  # noqa: RUF009 - frozen
    more: tuple[Entry, ...] = ()


def start(launch: Launch, notes: Iterable[str]) -> None:
    """Serve until a signal ends it, or the engine fails. An error is one line on stderr, and exit code 1.

    notes: lines to log first
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from rerankd.server.logs import logging_config

    logs = logging_config(launch.log_level, launch.log_format, launch.access_log)
    logging.config.dictConfig(logs)
    in_json = launch.log_format == "json"
    logging.captureWarnings(in_json)
    try:
        _start(launch, notes, logs)
    except EngineDead as error:
        _say(f"The engine has failed: {error}", launch, error=True)
        logging.shutdown()
        # The process exits at once, since a batch may still run.
        os._exit(1)
    except RerankdError as error:
        _say(str(error), launch, error=True)
        sys.exit(1)
    except Exception:
        if not in_json:
            raise
        log.critical("The server failed", exc_info=True)
        sys.exit(1)


def _say(text: str, launch: Launch, error: bool = False, **fields: object) -> None:
    """Print a message for the person who started the server; as JSON if the log is in JSON."""
    from rerankd.server.logs import SAID, SAID_OF_ERRORS

    logger, level = log, logging.CRITICAL if error else logging.INFO
    if launch.log_format == "text":
        logger = logging.getLogger(SAID_OF_ERRORS if error else SAID)
        text = f"rerankd: error: {text}" if error else text
    # `handle` checks no level: the message that the server is ready, or why not, is written at any level.
    logger.handle(logger.makeRecord(log.name, level, __file__, 0, text, (), None, extra=fields))


def _start(launch: Launch, notes: Iterable[str], logs: dict[str, Any]) -> None:
    from rerankd.cli.hosting import check_grpc
    from rerankd.server.run import Lifetime, bind, bind_unix, serve

    for note in notes:
        log.info("%s", note)
    door = launch.door
    guards, tls = door.guards(), door.tls()
    listener = bind_unix(door.uds) if door.uds else bind(launch.host, launch.port)
    if launch.grpc_port is not None:
        check_grpc(launch.host, launch.grpc_port, tls)
    with closing(listener), _removed(door.uds), opened(launch, **guards) as (pool, settings):
        from rerankd.server.app import create_app
        from rerankd.server.supervisor import notify

        app = create_app(pool, settings)
        beside = _grpc(launch, app, pool, settings, tls)
        address = listener.getsockname()
        url = f"unix:{address}" if door.uds else _url("https" if tls else "http", launch.host, address[1])

        def ready() -> None:
            pool.begin()
            message = _ready(url, settings, pool.models, door)
            fields: dict[str, object] = {"url": url}
            if beside:
                fields["grpc"] = _url("grpc", launch.host, beside.port).partition("//")[2]
                message += f"\nTEI's gRPC API: {fields['grpc']}"
            _say(message if launch.log_format == "text" else message.partition("\n")[0], launch, False, **fields)
            notify("READY=1")

        lifetime = Lifetime(
            ready,
            pool.close,
            launch.shutdown_timeout,
            settings.draining,
            lambda: pool.failure,
            launch.keep_alive,
            partial(notify, "STOPPING=1"),
        )
        serve(app, listener, lifetime, logs, tls, beside)


@contextmanager
def opened(launch: Launch, **more: Any) -> Iterator[tuple[Pool, Settings]]:
    """The models of a launch, and how they are served, until the context ends. Raises RerankdError.

    more: fields of `Settings` that the launch does not say
    """
    chosen = _chosen(launch)
    from rerankd.cli.hosting import open_pool
    from rerankd.server.settings import Settings

    models = _with_options(launch, chosen)
    traces = _traces(launch, models[0].names[0])
    with closing(traces) if traces else nullcontext(), closing(open_pool(models, launch.residence)) as pool:
        yield (
            pool,
            Settings(
                **{**launch.settings, "names": models[0].names},
                **more,
                limits=launch.request_limits,
                traces=traces,
                sleep_routes=launch.residence.sleep_routes,
                shutdown_timeout=launch.shutdown_timeout,
            ),
        )


def _grpc(launch: Launch, app: FastAPI, pool: Pool, settings: Settings, tls: Tls | None) -> GrpcServer | None:
    """The server of TEI's gRPC API, if one is asked for, of a launch that `check_grpc` has checked."""
    if launch.grpc_port is None:
        return None
    from rerankd.server.tei_grpc.server import GrpcServer

    def ready() -> bool:
        return not (pool.failure or settings.draining.is_set() or pool.asleep)

    return GrpcServer(app, launch.host, launch.grpc_port, settings, ready, tls)


def _chosen(launch: Launch) -> list[Entry]:
    """The models to serve, each with its names. Raises UsageProblem."""
    names = tuple(launch.settings.get("names") or ())
    first = [] if launch.model is None else [Entry(launch.model)]
    if not first and not launch.more:
        choice = default_model()
        _say(choice.why, launch)
        first = [Entry(choice.model, names or choice.names)]
    entries = [*first, *launch.more]
    if names and len(entries) > 1:
        raise UsageProblem(
            "--served-model-name is for one model; name several by served-model-name under models: in a --config file"
        )
    if len(entries) == 1:
        entries = [replace(entries[0], names=entries[0].names or names)]
    return [replace(entry, names=entry.names or (entry.model,)) for entry in entries]


def _with_options(launch: Launch, chosen: Iterable[Entry]) -> list[Named]:
    """The models with all options of loading: an entry's own win, which has none that a flag or a variable sets."""
    from rerankd.cli.hosting import Named
    from rerankd.media.sources import Access
    from rerankd.options import LoadOptions

    common = LoadOptions(
        model="",
        request_limits=launch.request_limits,
        max_characters=launch.request_limits.characters,
        max_queued_tokens=launch.settings.get("max_queued_tokens"),
        media_access=Access(launch.media.local_folders, launch.media.allow_private),
        media_limits=launch.media_limits,
        media_sizing=launch.media.sizing,
        **launch.loading,
    )
    return [Named(entry.names, replace(common, model=entry.model, **entry.loading)) for entry in chosen]


def _traces(launch: Launch, model: str) -> Traces | None:
    """The maker of spans, if a flag or the environment asks for traces. Raises TracingError if a flag asks in vain."""
    if not launch.traces and not any(name.startswith("OTEL_") for name in os.environ):
        return None
    from rerankd.server import tracing

    if launch.traces:
        return tracing.start(model, launch.traces.endpoint, **launch.traces.options)
    try:
        return tracing.start(model) if tracing.asked_for() else None
    except tracing.TracingError as error:  # variables may be there for all programs of a machine
        log.warning("No traces: %s", error)
        return None


@contextmanager
def _removed(path: str | None) -> Iterator[None]:
    """A context that removes a Unix socket's file at its end."""
    try:
        yield
    finally:
        if path is not None:
            Path(path).unlink(missing_ok=True)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _url(scheme: str, host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"


def _ready(url: str, settings: Settings, models: Sequence[Model], door: Door) -> str:
    first, *others = (_described(model) for model in models)
    body = json.dumps({"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]})
    key = " -H 'Authorization: Bearer KEY'" if settings.keys else ""
    return (
        f"rerankd {__version__} is ready: {url} {first}\n"
        + "".join(f"and {other}\n" for other in others)
        + f"Try: curl {_reached(url, door)}/v1/rerank{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
        + ("" if door.uds else _clients(url + settings.root_path, settings))
    )


def _described(model: Model) -> str:
    info = model.info
    details = f" quantization={info.quantization}" if info.quantization else ""
    details += f" tensor_parallel_size={info.tensor_parallel_size}" if info.tensor_parallel_size > 1 else ""
    details += f" data_parallel_size={info.data_parallel_size}" if info.data_parallel_size > 1 else ""
    details += " loaded=no" if model.reranker is None else ""
    return (
        f"model={model.names[0]} family={info.family} device={info.device} dtype={info.dtype} "
        f"backend={info.backend}{details}"
    )


def _clients(url: str, settings: Settings) -> str:
    """A line for each client that people use, with the address to give it."""
    # These clients read answers in vLLM's form, which the root has only under the dialect "vllm".
    vllm = url if settings.dialect == "vllm" else f"{url}/vllm"
    lines = [
        *([f"In a browser: {url}/playground"] if settings.playground else []),
        f"Cohere's SDK, LangChain, LlamaIndex: base URL {url}/cohere, as in cohere.ClientV2(KEY, base_url=...)",
        f"LiteLLM: model hosted_vllm/{settings.names[0]}, api_base {vllm}",
        f"Open WebUI, RAGFlow: {vllm}/v1/rerank; Dify: {vllm}/v1; Jina: {url}/jina/v1; Voyage: {url}/voyage/v1; "
        f"TEI: {url}/tei",
    ]
    return "".join(f"\n{line}" for line in lines)


def _reached(url: str, door: Door) -> str:
    """The arguments with which curl reaches the server."""
    return f"--unix-socket {shlex.quote(door.uds)} http://localhost" if door.uds else url
