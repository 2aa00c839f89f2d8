"""A socket, and the HTTP server that runs an app on it until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from rerankd.core import EngineDead, RerankdError
from rerankd.memory import exempt_from_collection
from rerankd.server.connections import Connections
from rerankd.server.tls import Tls, protocol

BACKLOG = 2048
FILES, OTHER_FILES = 65536, 256
"""Open files that the server asks for, and open files beside clients' connections: fetched images, logs."""
BESIDE = 4
"""A server of another protocol has one connection in so many."""
REFUSED, CANCELLED = 0.8, 0.9
"""Parts of the time that a server has to end: requests in flight are answered until the first, then what waits is
refused; at the second, calls that go on all the same are cancelled."""
STREAM_SECONDS = 0.5
"""The most seconds that clients of another protocol have to leave streams without further messages."""
LEAST_SECONDS = 1.0
"""The least time that a server has to end, so that refusals can be sent."""
SWITCH_SECONDS = 0.0005
"""How long the event loop waits for a thread that runs Python, each time that it comes back from the system: a tenth of
Python's own. With many clients it comes back often, and large requests keep several threads busy."""


class ListenError(RerankdError):
    """The server cannot listen on the address; `str()` of the error gives the reason."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Callbacks and times around serving.

    ready: is called when the server accepts requests
    close: fails the waiting requests; may block
    seconds: the time from a signal to the end of the process, whatever still runs; see REFUSED for its parts
    draining: is set when the server refuses new requests
    failure: the reason why the engine answers no more; None while it works
    keep_alive: seconds that a connection may be idle
    stopping: is called when the server refuses new requests
    """

    ready: Callable[[], None]
    close: Callable[[], None]
    seconds: float
    draining: threading.Event
    failure: Callable[[], EngineDead | None] = lambda: None
    keep_alive: float = 75.0
    stopping: Callable[[], None] = lambda: None


class Beside(Protocol):
    """A server of another protocol in the same event loop, which ends with the HTTP server."""

    async def start(self, tasks: set[asyncio.Task[None]]) -> None:
        """Take calls, each of which is one of `tasks` until it is answered. Raises ListenError."""
        ...

    async def stop(self, seconds: float) -> None:
        """End within `seconds`."""
        ...


def bind(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A socket bound to an address, not yet listening: until it listens, clients are refused. Raises ListenError.

    port: 0 for one that the system picks
    flag: the flag of the port, for errors
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise ListenError(f"Cannot listen on {host!r}: there is no such host; choose one with --host.") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port, flag) from None
    return listener


def bind_unix(path: str) -> socket.socket:
    """A Unix socket bound to a path, not yet listening; one that nobody listens on is replaced. Raises ListenError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == errno.ECONNREFUSED:
                    os.unlink(path)
        listener.bind(path)
    except OSError as error:
        listener.close()
        why = "the file is there already" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ListenError(f"Cannot listen on {path}: {why}; choose another path with --uds.") from None
    return listener


def serve(
    app: FastAPI,
    listener: socket.socket,
    lifetime: Lifetime,
    log_config: dict[str, Any],
    tls: Tls | None = None,
    beside: Beside | None = None,
) -> None:
    """Run `app` until SIGINT or SIGTERM, or until its engine fails.

    Requests in flight are answered then, or refused when most of `lifetime.seconds` are over; new ones are refused, by
    the app that looks at `lifetime.draining`. As soon as nothing is in flight, the port is closed. The signal is raised
    again at the end, for the handler that was there before. What runs then and does not end, a thread that tokenises or
    a batch, ends with the process when the seconds are over. A second signal ends the process at once.

    Raises ListenError, and the engine's failure.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another program bound the address too, and was first to listen
        address = listener.getsockname()
        host, port = (address, 0) if isinstance(address, str) else address[:2]
        raise _explained(error, host, port) from None
    try:
        context = tls.context() if tls else None
    except OSError as error:
        raise ListenError(f"HTTPS cannot be served with these --ssl files: {error}.") from None
    most = most_connections()
    connections = Connections(most=most - most // BESIDE if beside else most, keep_alive=lifetime.keep_alive)
    config = uvicorn.Config(
        app,
        http=protocol(connections, context),  # type: ignore[arg-type]
        log_config=log_config,
        access_log=False,  # `calls` writes a line for each call
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
    )
    server = Server(config, lifetime, beside)
    server.run(sockets=[listener])
    if server.failure:
        raise server.failure


def most_connections() -> int:
    """The most connections that may be open, after the limit on open files is raised as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    files = FILES if soft == resource.RLIM_INFINITY else soft
    return max(files - OTHER_FILES, files // 2)


class Server(uvicorn.Server):
    """uvicorn's server, which ends as `serve` says."""

    def __init__(self, config: uvicorn.Config, lifetime: Lifetime, beside: Beside | None = None) -> None:
        super().__init__(config)
        self._beside = beside
        self.failure: EngineDead | None = None
        self._lifetime = lifetime
        self._seconds = max(lifetime.seconds, LEAST_SECONDS)
        self._drains_since: float | None = None
        self._closed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal; see uvicorn."""
        if self._lifetime.draining.is_set():
            _end(128 + sig)
        self._captured_signals.append(sig)
        self._end_in_time(128 + sig)
        self.drain()

    def drain(self) -> None:
        """Take no new requests, and end when those in flight are answered."""
        self._lifetime.draining.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and report that the server is ready."""
        await super().startup(sockets)
        if self._beside:
            await self._beside.start(self.server_state.tasks)
        exempt_from_collection()
        sys.setswitchinterval(SWITCH_SECONDS)
        self._lifetime.ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to close the port, asked ten times a second."""
        await super().on_tick(counter)
        if self.failure is None and (failure := self._lifetime.failure()):
            self.failure = failure
            self._end_in_time(1)
            self.drain()
        if not self._lifetime.draining.is_set():
            return False
        if self._drains_since is None:
            self._drains_since = time.monotonic()
            self._lifetime.stopping()
        waited = time.monotonic() - self._drains_since
        if waited >= min(self._lifetime.seconds, REFUSED * self._seconds) and not self._closed:
            self._closed = True
            # A daemon: a batch that does not end keeps nobody.
            threading.Thread(target=self._lifetime.close, name="rerankd-close", daemon=True).start()
        return not self.server_state.tasks or waited >= CANCELLED * self._seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port and all connections, and cancel the calls that have not ended."""
        waited = time.monotonic() - (self._drains_since or time.monotonic())
        seconds_left = max(CANCELLED * self._seconds - waited, 0)
        # uvicorn declares an int, and passes the value to `asyncio.wait_for`, which takes fractions.
        self.config.timeout_graceful_shutdown = seconds_left  # type: ignore[assignment]
        await super().shutdown(sockets)
        if self._beside:
            await self._beside.stop(min(seconds_left, STREAM_SECONDS))

    def _end_in_time(self, code: int) -> None:
        # A daemon thread: it does not keep a process alive that ends by itself.
        backstop = threading.Timer(self._seconds, _end, (code,))
        backstop.daemon = True
        backstop.start()


def _end(code: int) -> None:
    """End the process without waiting for any thread."""
    os._exit(code)


def _explained(error: OSError, host: str, port: int, flag: str = "--port") -> ListenError:
    if error.errno == errno.EADDRINUSE:
        why = f"another program listens there; stop it, or choose another port with {flag}"
    elif error.errno == errno.EACCES:
        why = f"this user has no permission; choose a port above 1023 with {flag}"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "this machine has no such address; choose one with --host"
    else:
        why = error.strerror or str(error)
    return ListenError(f"Cannot listen on {host}:{port}: {why}.")
