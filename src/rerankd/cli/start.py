"""From a command's options to a running server."""

from __future__ import annotations

import json
import logging
import logging.config
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from rerankd.cli.default_model import default_model
from rerankd.cli.door import Door
from rerankd.core import ModelError, RerankdError
from rerankd.version import __version__

if TYPE_CHECKING:
    from rerankd.media.sizing import Sizing
    from rerankd.options import ModelInfo

log = logging.getLogger("rerankd")

MEDIA_TIMEOUT = 30.0
"""Seconds; vLLM's are 5 for an image and 30 for a video."""


@dataclass(frozen=True, slots=True)
class Media:
    """What requests may have images and videos read from, and how large a model is shown them.

    timeout: seconds to fetch one
    min_pixels, max_pixels: of an image that says nothing of it; None for what `shown` says
    shown: fields of `media.sizing.Sizing`
    """

    local_folders: tuple[Path, ...] = ()
    allow_private: bool = False
    timeout: float = MEDIA_TIMEOUT
    min_pixels: int | None = None
    max_pixels: int | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """What to serve, where and how. The fields from `revision` to `default_instruction` are `LoadOptions`' own.

    model: None for the default one
    names: what the model is called; empty for `model` itself
    max_body: bytes
    shutdown_timeout: seconds that running requests have after a signal
    door: who may call, and how a call comes in
    """

    model: str | None
    names: tuple[str, ...]
    host: str
    port: int
    dialect: str
    log_level: str
    max_body: int
    access_log: bool = True
    docs: bool = True
    shutdown_timeout: float = 10.0
    revision: str | None = None
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_batch_tokens: int | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    default_instruction: str | None = None
    media: Media = field(default_factory=Media)
    door: Door = Door()  # noqa: RUF009 - frozen


def start(launch: Launch, notes: Iterable[str]) -> None:
    """Serve until a signal ends it. An error that a user can act on is one line on stderr, and exit code 1.

    notes: lines to log first
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        _start(launch, notes)
    except RerankdError as error:
        print(f"rerankd: error: {error}", file=sys.stderr)
        sys.exit(1)


def _start(launch: Launch, notes: Iterable[str]) -> None:
    from rerankd.server.run import Lifetime, bind, bind_unix, serve

    logs = _logging(launch.log_level)
    logging.config.dictConfig(logs)
    for note in notes:
        log.info("%s", note)
    door = launch.door
    keys, cors, tls = door.keys(), door.cors(), door.tls()
    listener = bind_unix(door.uds) if door.uds else bind(launch.host, launch.port)
    with closing(listener), _removed(door.uds):
        model, names = launch.model, launch.names
        if model is None:
            choice = default_model()
            model, names = choice.model, names or choice.names
            print(choice.why, flush=True)

        from rerankd.media.limits import Limits
        from rerankd.media.sources import Access
        from rerankd.options import LoadOptions
        from rerankd.reranker import Reranker
        from rerankd.server.app import Settings, create_app

        options = LoadOptions(
            model=model,
            revision=launch.revision,
            hub=launch.hub,
            device=launch.device,
            dtype=launch.dtype,
            quantization=launch.quantization,
            max_model_len=launch.max_model_len,
            max_batch_tokens=launch.max_batch_tokens,
            hf_overrides=launch.hf_overrides,
            chat_template=launch.chat_template,
            default_instruction=launch.default_instruction,
            media_access=Access(launch.media.local_folders, launch.media.allow_private),
            media_limits=Limits(timeout=launch.media.timeout),
            media_sizing=_sizing(launch.media),
        )
        with Reranker(options) as reranker:
            settings = Settings(
                names or (model,),
                launch.dialect,
                launch.max_body,
                launch.docs,
                keys,
                door.protect_all,
                cors,
                door.root_path.rstrip("/"),
            )
            app = create_app(reranker, settings)
            address = listener.getsockname()
            url = f"unix:{address}" if door.uds else _url("https" if tls else "http", launch.host, address[1])

            def ready() -> None:
                print(_ready(url, settings.names[0], reranker.info, door, bool(keys)), flush=True)

            lifetime = Lifetime(ready, reranker.close, launch.shutdown_timeout)
            serve(app, listener, lifetime, logs, launch.access_log, tls)


@contextmanager
def _removed(path: str | None) -> Iterator[None]:
    """Take a Unix socket's file away at the end."""
    try:
        yield
    finally:
        if path is not None:
            Path(path).unlink(missing_ok=True)


def _sizing(media: Media) -> Sizing:
    """Raises ModelError for bounds that leave no room."""
    from rerankd.core import Image, Video
    from rerankd.media.limits import BadMedia
    from rerankd.media.sizing import Sizing

    pixels = {"min_pixels": media.min_pixels, "max_pixels": media.max_pixels}
    sizing = Sizing(**{**media.shown, **{name: count for name, count in pixels.items() if count is not None}})
    try:
        sizing.image_bounds(Image(None))
        sizing.video_sampling(Video(None))
    except BadMedia as error:
        raise ModelError(f"Images and videos cannot be shown as asked: {error}.") from error
    return sizing


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _url(scheme: str, host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"


def _ready(url: str, name: str, info: ModelInfo, door: Door, locked: bool) -> str:
    body = json.dumps({"query": "what is panda?", "documents": ["hi", "The giant panda is a bear."]})
    key = " -H 'Authorization: Bearer KEY'" if locked else ""
    return (
        f"rerankd {__version__} is ready: {url} model={name} family={info.family} "
        f"device={info.device} dtype={info.dtype}{f' quantization={info.quantization}' if info.quantization else ''}\n"
        f"Try: curl {_reached(url, door)}/v1/rerank{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def _reached(url: str, door: Door) -> str:
    """What curl is told, so that it reaches the server."""
    return f"--unix-socket {shlex.quote(door.uds)} http://localhost" if door.uds else url


def _logging(level: str) -> dict[str, Any]:
    """uvicorn's own logging, with rerankd's beside it."""
    from uvicorn.config import LOGGING_CONFIG

    # uvicorn adds a level below DEBUG; logging itself has no name for it.
    own, http = ("DEBUG", 5) if level == "trace" else (level.upper(), level.upper())
    loggers = {name: {**values, "level": http} for name, values in LOGGING_CONFIG["loggers"].items()}
    loggers["rerankd"] = {"handlers": ["default"], "level": own, "propagate": False}
    return {**LOGGING_CONFIG, "loggers": loggers}
