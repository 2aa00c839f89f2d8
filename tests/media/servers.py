"""A picture server on loopback that answers as a test says, byte for byte."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO


@dataclass
class Seen:
    """A request as it arrived."""

    target: str
    headers: dict[str, str]


Answer = bytes | Callable[[BinaryIO], None]


@dataclass
class Server:
    """`answers` maps a target to raw HTTP, or to a function that writes it."""

    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    port: int = 0

    def url(self, target: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{target}"


def ok(body: bytes, *headers: str) -> bytes:
    """A whole response that closes the connection."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def to(location: str, status: int = 302) -> bytes:
    """A redirect."""
    head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return head.encode()


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode("latin-1").split()
            headers = {}
            while (header := self.rfile.readline().strip()) != b"":
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if len(line) != 3:
                return
            server.seen.append(Seen(line[1], headers))
            answer = server.answers.get(line[1], b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            with contextlib.suppress(OSError):
                if callable(answer):
                    answer(self.wfile)
                else:
                    self.wfile.write(answer)

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def finish_request(self, request: object, client_address: object) -> None:
            with contextlib.suppress(OSError):
                if tls is not None:
                    request = tls.wrap_socket(request, server_side=True)  # type: ignore[call-overload]
                super().finish_request(request, client_address)  # type: ignore[arg-type]

    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: server.names.append(name)
    with Listener(("127.0.0.1", 0), Handler) as listener:
        server.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
