"""HTTP connections with limits on the size of a head and on the time that a client takes to send, to read and to idle.

uvicorn's protocol parses and answers; it bounds none of these. It also loses the body of a request that offers an
upgrade to HTTP/2, as Java's clients and `curl --http2` do, and answers requests without a Host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

log = logging.getLogger("rerankd")

HEAD_PIECE, BODY_PIECE = 4 << 10, 64 << 10
"""Bytes that are parsed at a time. No more requests than one piece holds ever wait behind another on a connection."""
OF_AN_UPGRADE = (b"upgrade", b"http2-settings")
SECONDS_BETWEEN_WARNINGS = 10.0

State: TypeAlias = Literal["new", "idle", "head", "body", "busy", "rest", "refused"]
"""The state of a connection: it waits for the first request, another request, the rest of a head or a body, an answer,
the rest of a body that nobody reads, or for the client to close."""


class Closes(Protocol):
    """A connection that may be closed in favour of another."""

    def abort(self) -> None:
        """Close it at once."""
        ...


@dataclass
class Connections:
    """The connections of one server, and their limits.

    most: connections open at a time; beyond it the one that has waited longest for its client is closed. If all are
        being answered, the new one is refused
    keep_alive: seconds that a connection may idle
    head_bytes, head_seconds: limits on a request's line and headers; `head_bytes` also limits trailers, and
        `head_seconds` a TLS handshake
    rest_seconds: the time for the rest of a body that nobody reads to arrive, and for a refused client to close
    read_seconds: the time for a client to read some of an answer that fills all buffers
    """

    most: int = 1000
    keep_alive: float = 75.0
    head_bytes: int = 64 << 10
    head_seconds: float = 30.0
    rest_seconds: float = 5.0
    read_seconds: float = 60.0
    _waiting: OrderedDict[Closes, None] = field(default_factory=OrderedDict)
    _warned: float = field(default=float("-inf"))

    def waits(self, connection: Closes, waits: bool) -> None:
        """Note whether a connection waits for its client from now on, and so may be closed in favour of another."""
        self._waiting.pop(connection, None)
        if waits:
            self._waiting[connection] = None

    def admit(self, open_connections: int) -> bool:
        """Whether a new connection may stay, after closing one that waits for its client if too many are open."""
        if open_connections <= self.most:
            return True
        if (now := time.monotonic()) - self._warned > SECONDS_BETWEEN_WARNINGS:
            self._warned = now
            log.warning(
                "%d connections are open, as many as open files allow (ulimit -n); those that have waited longest for "
                "their clients are closed for new ones",
                self.most,
            )
        if not self._waiting:
            return False
        oldest, _ = self._waiting.popitem(last=False)
        oldest.abort()
        return True


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Transport:
    """A transport that drops late writes, where uvloop's raises until the loop has told the protocol."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        """See `asyncio.Transport`."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Flow(FlowControl):
    """Reads on only after the bytes that were read are parsed."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self._may_read():
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One connection. See the module."""

    def __init__(self, connections_of_all: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = connections_of_all
        self._state: State = "new"
        self._timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._unparsed = bytearray()
        self._in_head = False
        self._in_message = False
        self._upgrades = False
        self._silent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(cast(asyncio.Transport, _Transport(transport)))
        self.flow = _Flow(transport, lambda: not self._unparsed and not self.pipeline)
        if self._all.admit(len(self.connections)):
            self._all.waits(self, True)
            self._wait(self._all.keep_alive, self.abort)
        else:
            self._refuse(503, "Too many connections are open; try again later.")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._all.waits(self, False)
        for timer in (self._timer, self._read_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._unset_keepalive_if_required()
        if self._state != "refused":
            self._unparsed += data
            self._parse()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(self._all.read_seconds, self.abort)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._read_timer:
            self._read_timer.cancel()

    def shutdown(self) -> None:
        """The server ends; see uvicorn."""
        super().shutdown()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._wait(self._all.rest_seconds, self.abort)

    def abort(self) -> None:
        """Close the connection at once; answers to what came over it are dropped."""
        for cycle in (self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
        self.transport.abort()

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._silent = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the head, a trailer, which says nothing here."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head is there."""
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self._all.head_bytes:
            raise self._too_large()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _Refused(400, "A request has one Host header.")
        self._upgrades = self.parser.should_upgrade()
        if not self._upgrades:
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise _Refused(400, "This server is no proxy.")

    def on_body(self, body: bytes) -> None:
        """A piece of a request's body."""
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there."""
        if not self._upgrades:
            self._in_message = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is on its way."""
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            self._look()
            if self._unparsed:
                self.loop.call_soon(self._parse)

    def _parse(self) -> None:
        while self._unparsed and not self.pipeline and self._state != "refused" and not self.transport.is_closing():
            size = BODY_PIECE if self._in_message and not self._in_head else HEAD_PIECE
            piece = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            self._silent += len(piece)
            try:
                self.parser.feed_data(piece)
                if self._silent > self._all.head_bytes + size:
                    raise self._too_large()
            except httptools.HttpParserUpgrade as upgrade:
                self._decline_upgrade(piece[upgrade.args[0] :])
            except _Refused as refused:
                self._refuse(refused.status, str(refused))
            except httptools.HttpParserError as error:
                cause = error.__context__
                if isinstance(cause, _Refused):
                    self._refuse(cause.status, str(cause))
                else:
                    self._refuse(400, "Invalid HTTP request received.")
        if self._unparsed or self.pipeline:
            self.flow.pause_reading()
        self._look()

    def _decline_upgrade(self, remaining: bytes) -> None:
        """Parse the request again as one that offers no upgrade (RFC 9110, 7.8: it is answered as if it had not)."""
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        head = bytearray(line)
        for name, value in self.headers:
            if name == b"connection":
                options = (option.strip() for option in value.split(b","))
                value = b", ".join(option for option in options if option.lower() not in OF_AN_UPGRADE)
            if name not in OF_AN_UPGRADE and (name != b"connection" or value):
                head += b"%s: %s\r\n" % (name, value)
        self._upgrades = self._in_message = False
        self.parser = httptools.HttpRequestParser(self)
        self._unparsed[:0] = head + b"\r\n" + remaining

    def _too_large(self) -> _Refused:
        return _Refused(431, f"A request's head may have {self._all.head_bytes} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer outside of the app, and read no more requests."""
        self.logger.warning("%d for %s: %s", status, self.client, message)
        self._unparsed.clear()
        whole = self._in_head or not self._in_message
        if self._answers() and not whole:
            # The present call will never be complete; the reader of its body is told that the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._answers() and whole:
            # The answer to the present call goes out first, and is the last one.
            self.cycle.keep_alive = False
            for cycle, _ in self.pipeline:
                cycle.keep_alive = False
        else:
            body = message.encode()
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
                + b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            if self.transport.can_write_eof():
                self.transport.write_eof()
            # What is still sent is read, since the client would get a reset in place of the answer.
            self._wait(self._all.rest_seconds, self.abort)
        self._all.waits(self, False)
        self._state = "refused"

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        """Determine the state of the connection, and its time limit."""
        if self._state == "refused" or self.transport.is_closing():
            return
        state: State = "idle"
        if self._answers():
            state = "body" if self.cycle.more_body and not self.pipeline else "busy"
        elif self._in_head:
            state = "head"
        elif self._in_message:
            state = "rest"
        elif self._state == "new":
            state = "new"
        if state == self._state:
            return
        self._state = state
        self._all.waits(self, state != "busy")
        if state in ("body", "busy"):
            self._wait(None)
        elif state == "head":
            self._wait(self._all.head_seconds, lambda: self._refuse(408, "The request's head did not arrive in time."))
        elif state == "rest":
            self._wait(self._all.rest_seconds, self.abort)
        else:
            self._wait(self._all.keep_alive, self.abort)

    def _wait(self, seconds: float | None, then: Callable[[], object] | None = None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None if seconds is None or then is None else self.loop.call_later(seconds, then)
