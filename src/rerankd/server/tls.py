"""HTTPS: the server's certificate, and connections whose TLS handshake is not finished yet.

asyncio reports a connection to its protocol when the handshake is done. A client that never finishes a handshake would
not be counted, and its connection would stay open for a minute. Here the connection is counted first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from rerankd.server.connections import Connection, Connections

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate to serve HTTPS with, as files; `client_certificates` is one of `ssl`'s CERT_ constants."""

    certificate: str
    key: str | None = None
    password: str | None = None
    authorities: str | None = None
    client_certificates: int = ssl.CERT_NONE

    def context(self) -> ssl.SSLContext:
        """What handshakes need. Raises OSError for files that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key, self.password)
        context.verify_mode = ssl.VerifyMode(self.client_certificates)
        if self.authorities:
            context.load_verify_locations(self.authorities)
        return context


def protocol(connections: Connections, context: ssl.SSLContext | None = None) -> Callable[..., asyncio.Protocol]:
    """Makes the protocol of each connection that a server accepts, from uvicorn's arguments; HTTPS with a context."""
    return partial(Connection, connections) if context is None else partial(Handshake, connections, context)


class Handshake(asyncio.Protocol):
    """A connection until its handshake is done; then a `Connection` takes over.

    The handshake counts as one of the server's connections that wait for their clients: if too many are open, it may be
    closed for a new one. A handshake has as much time as a request's head.
    """

    def __init__(self, connections: Connections, context: ssl.SSLContext, **arguments: Any) -> None:
        """arguments: of uvicorn's protocols"""
        self._all = connections
        self._context = context
        self._connection = _Encrypted(self._leave, connections, **arguments)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # The loop does a handshake only over a socket of its own, from which nothing was read.
        try:
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError as error:  # such as too many open files
            log.warning("A connection is closed before its TLS handshake: %s", error)
            return
        finally:
            cast(asyncio.Transport, transport).abort()
        if not self._all.admit(len(self._connection.connections) + 1):
            self._socket.close()
            return
        self._connection.connections.add(self)  # type: ignore[arg-type]
        self._all.waits(self, True)
        self._task = self._connection.loop.create_task(self._shake_hands())

    def abort(self) -> None:
        """Close the connection at once: the handshake sees its end."""
        with suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """The server ends; see uvicorn."""
        self.abort()

    async def _shake_hands(self) -> None:
        try:
            await self._connection.loop.connect_accepted_socket(
                lambda: self._connection, self._socket, ssl=self._context, ssl_handshake_timeout=self._all.head_seconds
            )
        except OSError as error:
            log.debug("A TLS handshake failed: %s", error)
            self.abort()
        finally:
            self._leave()

    def _leave(self) -> None:
        self._all.waits(self, False)
        self._connection.connections.discard(self)


class _Encrypted(Connection):
    """A connection whose handshake is done when it is made; `done` is called first, so that it is not counted twice."""

    def __init__(self, done: Callable[[], None], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done = done

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._done()
        super().connection_made(transport)
