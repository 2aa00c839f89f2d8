"""A socket, and the HTTP server that runs an app on it until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from rerankd.core import RerankdError

BACKLOG = 2048
BACKSTOP_SECONDS = 3
"""From the end of the grace period until calls that go on are cancelled, and from then to the end of the process."""


class ListenError(RerankdError):
    """The address cannot be listened on; `str()` of it says why."""


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate to serve HTTPS with, as files; `client_certificates` is one of `ssl`'s CERT_ constants."""

    certificate: str
    key: str | None = None
    password: str | None = None
    authorities: str | None = None
    client_certificates: int = ssl.CERT_NONE


@dataclass(frozen=True, slots=True)
class Lifetime:
    """What surrounds serving.

    ready: called once requests are taken
    close: fails the requests that still wait; may block
    grace: seconds that running requests have at the end before `close` is called; the process ends soon after, whatever
        runs in it
    """

    ready: Callable[[], None]
    close: Callable[[], None]
    grace: float


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening: until it listens, clients are refused. Raises ListenError.

    port: 0 for one that the system picks
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
        raise _explained(error, host, port) from None
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
) -> None:
    """Run `app` until SIGINT or SIGTERM; running requests are answered, or refused after the grace period.

    The signal is raised again at the end, for the handler that was there before. What runs then and does not end, a
    thread that tokenises or a batch, ends with the process, twice `BACKSTOP_SECONDS` after the grace period. A second
    signal ends the process at once. Raises ListenError.
    """
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another program bound the address too, and was first to listen
        address = listener.getsockname()
        host, port = (address, 0) if isinstance(address, str) else address[:2]
        raise _explained(error, host, port) from None
    config = uvicorn.Config(
        app,
        log_config=log_config,
        access_log=False,  # `calls` writes a line for each call
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(lifetime.grace) + BACKSTOP_SECONDS,
        **_ssl_options(tls),
    )
    try:
        config.load()
    except OSError as error:
        raise ListenError(f"HTTPS cannot be served with these --ssl files: {error}.") from None
    _Server(config, lifetime).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, lifetime: Lifetime) -> None:
        super().__init__(config)
        self._lifetime = lifetime

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            _end(sig)
        super().handle_exit(sig, frame)
        # A daemon: it lives until the process ends by itself, and is no reason for it not to.
        watchdog = threading.Timer(self._lifetime.grace + 2 * BACKSTOP_SECONDS, _end, (sig,))
        watchdog.daemon = True
        watchdog.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._lifetime.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        refusal = loop.call_later(self._lifetime.grace, lambda: loop.run_in_executor(None, self._lifetime.close))
        await super().shutdown(sockets)
        refusal.cancel()


def _end(sig: int) -> None:
    """End the process with the exit code of one that a signal killed, without waiting for any thread."""
    os._exit(128 + sig)


def _ssl_options(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "ssl_certfile": tls.certificate,
        "ssl_keyfile": tls.key,
        "ssl_keyfile_password": tls.password,
        "ssl_ca_certs": tls.authorities,
        "ssl_cert_reqs": tls.client_certificates,
    }


def _explained(error: OSError, host: str, port: int) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        why = "another program listens there; stop it, or choose another port with --port"
    elif error.errno == errno.EACCES:
        why = "this user may not; choose a port above 1023 with --port"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = "this machine has no such address; choose one with --host"
    else:
        why = error.strerror or str(error)
    return ListenError(f"Cannot listen on {host}:{port}: {why}.")
