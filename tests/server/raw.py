"""Requests byte by byte, as clients that are no Python packages write them."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit


def sent(url: str, request: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
    """The status, headers and body of the answer to bytes. `HOST` in them is the server's address."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request.replace(b"HOST", address.netloc.encode(), 1))
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.headers, response.read()


def of_go(path: str, body: bytes, *headers: bytes) -> bytes:
    """What Go's net/http writes for a request that its program set no Content-Type for."""
    head = [
        b"POST %s HTTP/1.1" % path.encode(), b"Host: HOST", b"User-Agent: Go-http-client/1.1",
        b"Content-Length: %d" % len(body), *headers, b"Accept-Encoding: gzip",
    ]  # fmt: skip
    return b"\r\n".join([*head, b"", body])


def of_elasticsearch(path: str, body: bytes) -> bytes:
    """What Elasticsearch's HTTP client (Apache's, asynchronous) writes."""
    head = [
        b"POST %s HTTP/1.1" % path.encode(), b"Content-Type: application/json", b"Authorization: Bearer k",
        b"Content-Length: %d" % len(body), b"Host: HOST", b"Connection: Keep-Alive",
        b"User-Agent: Apache-HttpAsyncClient/4.1.5 (Java/21.0.2)",
    ]  # fmt: skip
    return b"\r\n".join([*head, b"", body])
