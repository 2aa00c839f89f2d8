"""TLS handshakes that are never begun or never finished: they are counted, and given up."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
import requests
import trustme

from rerankd.server.connections import Connections
from rerankd.server.settings import Settings
from rerankd.server.tls import Tls
from tests.server.fakes import MODEL, FakeReranker, running
from tests.server.test_clients_that_leave import until
from tests.server.test_connections import GET, POST, all_of, connect

Loop: TypeAlias = Literal["auto", "asyncio"]
LOOPS: tuple[Loop, ...] = ("auto", "asyncio")
"""uvloop's event loop, and asyncio's own."""
WAIT = json.dumps({"query": "wait", "documents": ["a"]}).encode()


class Authority:
    """Its certificate, the server's, and the clients that trust it.

    file: of the certificate, for `requests`
    server: the server's side of handshakes
    clients: the other side
    """

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.file, own = str(folder / "ca.pem"), folder / "server.pem"
        authority.cert_pem.write_to_path(self.file)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(own)
        self.server = Tls(str(own)).context()
        self.clients = ssl.create_default_context(cafile=self.file)

    def status(self, url: str) -> int:
        return requests.get(f"{url}/health", verify=self.file, timeout=30).status_code

    def answered(self, url: str) -> bool:
        """Whether a request is answered; on a slow machine its handshake may take longer than a hasty server allows."""
        with suppress(requests.ConnectionError):
            return self.status(url) == 200
        return False

    def encrypted(self, connection: socket.socket) -> ssl.SSLSocket:
        return self.clients.wrap_socket(connection, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def hello(authority: Authority) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client that has said hello, and its two ends: bytes from and to the server."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.clients.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return client, incoming, outgoing


def until_given_up(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection. Its socket's timeout is far below 60 seconds."""
    try:
        return all_of(connection)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("loop", LOOPS)
def test_hundreds_of_halves_are_given_up_and_others_are_answered(loop: Loop, authority: Authority) -> None:
    """After no byte, half a hello, and a hello whose answer is not answered."""
    said, limits = hello(authority)[2].read(), Connections(head_seconds=1.0)
    with running(FakeReranker(), Settings(names=(MODEL,)), limits, authority.server, loop) as url:
        halves = [connect(url) for _ in range(300)]
        for number, connection in enumerate(halves):
            connection.sendall((b"", said[:50], said)[number % 3])
        until(lambda: authority.answered(url))
        for connection in halves:
            until_given_up(connection)
            connection.close()
        until(lambda: authority.answered(url))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_may_come_with_the_end_of_the_handshake(loop: Loop, authority: Authority) -> None:
    client, incoming, outgoing = hello(authority)
    served = running(FakeReranker(), Settings(names=(MODEL,)), Connections(), authority.server, loop)
    with served as url, connect(url) as connection:
        connection.sendall(outgoing.read())
        while client.version() is None:
            incoming.write(connection.recv(1 << 16))
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
        # The end of the handshake is not sent yet.
        client.write(GET)
        connection.sendall(outgoing.read())
        got = b""
        while not got.startswith(b"HTTP/1.1 200 "):
            incoming.write(connection.recv(1 << 16))
            with suppress(ssl.SSLWantReadError):
                got += client.read(1 << 16)


def test_failed_handshakes_leave_nothing_behind(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """Clients without TLS, clients that leave in the middle, and clients that trust somebody else."""
    said = hello(authority)[2].read()
    with running(FakeReranker(), Settings(names=(MODEL,)), Connections(most=8), authority.server) as url:
        for sent in (GET, said[:50], said, b""):
            for _ in range(10):
                with connect(url) as connection:
                    connection.sendall(sent)
                    if sent == GET:
                        until_given_up(connection)
                    connection.shutdown(socket.SHUT_RDWR)
        for _ in range(10):
            with pytest.raises(requests.exceptions.SSLError):
                requests.get(f"{url}/health", timeout=30)
        # Those that left last may still be among the open ones.
        until(lambda: authority.status(url) == 200)
        caplog.clear()
        kept = [authority.encrypted(connect(url)) for _ in range(3)]
        assert authority.status(url) == 200
        for connection in kept:
            connection.sendall(GET)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            connection.close()
    assert "connections are open" not in caplog.text
    assert "Traceback" not in caplog.text


def test_the_oldest_half_gives_way_to_a_new_connection(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,)), Connections(most=10), authority.server) as url:
        halves = [connect(url) for _ in range(10)]
        halves[0].settimeout(20)  # less than a handshake has
        assert authority.status(url) == 200
        assert until_given_up(halves[0]) == b""
        with authority.encrypted(halves[9]) as kept:
            kept.sendall(GET)
            assert kept.recv(100).startswith(b"HTTP/1.1 200 ")
        for connection in halves:
            connection.close()
    assert "10 connections are open" in caplog.text


def test_where_no_connection_waits_for_its_client_a_new_one_is_closed(authority: Authority) -> None:
    fake = FakeReranker()
    with running(fake, Settings(names=(MODEL,)), Connections(most=2), authority.server) as url:
        busy = [authority.encrypted(connect(url)) for _ in range(2)]
        for connection in busy:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(WAIT) + WAIT)
        until(lambda: len(fake.requests) == 2)
        with connect(url) as late:
            late.settimeout(20)
            assert until_given_up(late) == b""
        fake.gate.set()
        for connection in busy:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            connection.close()
        until(lambda: authority.status(url) == 200)


def test_a_server_that_stops_waits_for_no_handshake(authority: Authority) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,)), Connections(), authority.server) as url:
        half = connect(url)
        half.settimeout(20)
        # Connections are accepted in order.
        assert authority.status(url) == 200
    assert until_given_up(half) == b""
    half.close()
