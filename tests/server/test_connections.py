"""Connections whose client sends too much, too slowly or not at all, or does not read: each is bounded."""

from __future__ import annotations

import gc
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import requests

from rerankd.server.connections import HEAD_PIECE, Connection, Connections
from rerankd.server.run import most_connections
from rerankd.server.settings import Settings
from tests.server.fakes import MODEL, FakeReranker, running
from tests.server.test_clients_that_leave import until

BODY = json.dumps({"query": "quick", "documents": ["a", "b"]}).encode()
POST = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """One with the usual limits."""
    with running(FakeReranker(), Settings(names=(MODEL,))) as url:
        yield url


HASTE = Connections(keep_alive=0.3, head_seconds=0.3, rest_seconds=0.3, read_seconds=0.3)


@pytest.fixture(scope="module")
def hasty() -> Iterator[str]:
    """One with little patience."""
    with running(FakeReranker(), Settings(names=(MODEL,), max_body=1 << 20), HASTE) as url:
        yield url


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def exchanged(url: str, sent: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with connect(url) as connection:
        connection.sendall(sent)
        return all_of(connection)


def all_of(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def until_closed(connection: socket.socket, data: bytes) -> None:
    """Send something again and again, until the server closes the connection."""
    for _ in range(30_000):
        try:
            connection.sendall(data)
        except TimeoutError:  # it is only not read any more
            break
        except OSError:  # a reset, or a broken pipe
            return
        time.sleep(0.001)
    raise AssertionError("it was never closed")


def answer(url: str, sent: bytes) -> bytes:
    """The first answer's bytes; the connection is closed then."""
    with connect(url) as connection:
        connection.sendall(sent)
        got = b""
        while b"\r\n\r\n" not in got:
            got += connection.recv(1 << 16)
        head, _, body = got.partition(b"\r\n\r\n")
        (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        while len(body) < int(length.split(b":")[1]):
            body += connection.recv(1 << 16)
        return head + b"\r\n\r\n" + body


# Java's HttpClient, `curl --http2`, and one that keeps the connection at the same time.
UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n",
    b"connection: keep-alive, upgrade\r\nUPGRADE: h2c\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_another_protocol_is_declined_and_its_request_answered(
    server: str, upgrade: bytes, chunked: bool
) -> None:
    plain = json.loads(answer(server, WHOLE).partition(b"\r\n\r\n")[2])["results"]
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % len(BODY)
    got = answer(server, POST + upgrade + framing + b"\r\n" + body)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["results"] == plain


def test_bodies_in_pieces_and_further_requests_follow_an_offer(server: str) -> None:
    large = json.dumps({"query": "quick", "documents": ["word " * 30_000] * 3}).encode()
    with connect(server) as connection:
        head = POST + UPGRADES[0] + b"Content-Length: %d\r\n\r\n" % len(large)
        for start in range(0, len(head), 50):
            connection.sendall(head[start : start + 50])
            time.sleep(0.001)
        connection.sendall(large + POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        got = all_of(connection)
    assert got.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (65 << 10) + b"\r\n\r\n", 431),
        (b"GET /health?" + b"y" * (65 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 15_000 + b"\r\n", 431),
    ],
)
def test_what_a_head_may_be(hasty: str, head: bytes, status: int) -> None:
    assert exchanged(hasty, head).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1000,
        b"GET /" + b"y" * 1000,
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 1000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"y" * 1000,
    ],
)
def test_heads_without_end_are_cut_off(hasty: str, endless: bytes) -> None:
    """So are trailers and chunk extensions, which have no end either."""
    with connect(hasty) as connection:
        connection.sendall(endless)
        until_closed(connection, endless[-6:] * 1000)


def test_a_head_that_does_not_arrive_is_given_up(hasty: str) -> None:
    assert exchanged(hasty, GET[:-5]).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_drips_is_given_up(hasty: str) -> None:
    with connect(hasty) as connection:
        connection.sendall(GET[:-2] + b"X: ")
        until_closed(connection, b"y")


@pytest.mark.parametrize("sent", [b"", GET, b"\r\n"])
def test_idle_connections_are_closed(hasty: str, sent: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        try:
            got = all_of(connection)
        except ConnectionResetError:
            got = b""
        assert got == b"" or (sent == GET and got.startswith(b"HTTP/1.1 200 "))


def test_a_connection_is_kept_between_requests(server: str) -> None:
    with connect(server) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_the_rest_of_a_body_that_is_refused_is_not_waited_for_without_end(hasty: str) -> None:
    """It is read for a while, for the client to get its answer."""
    head = POST + b"Content-Length: 100000000\r\n\r\n"
    with connect(hasty) as connection:
        connection.sendall(head)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        until_closed(connection, b"x")


def test_the_rest_of_a_refused_body_may_come_and_another_request_behind_it(server: str) -> None:
    body = b"x" * 300_000
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(server) as connection:
        connection.sendall(head)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 415 ")
        connection.sendall(body + GET)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(server: str) -> None:
    bodies = [json.dumps({"query": f"q {n}", "documents": ["a"], "request_id": str(n)}).encode() for n in range(300)]
    sent = b"".join(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies)
    with connect(server) as connection:
        connection.sendall(sent + GET.replace(b"Host", b"Connection: close\r\nHost"))
        got = all_of(connection)
    assert got.count(b"HTTP/1.1 200 ") == 301
    places = [got.index(b'"rerank-%d"' % n) for n in range(300)]
    assert places == sorted(places)


def test_a_bad_request_behind_a_good_one_does_not_cost_its_answer(server: str) -> None:
    got = exchanged(server, WHOLE + b"nonsense\r\n\r\n")
    assert got.count(b"HTTP/1.1 ") == 1
    assert got.startswith(b"HTTP/1.1 200 ")


def test_who_pipelines_and_never_reads_is_stopped(hasty: str) -> None:
    """The server reads no further than its answers are taken, and then gives up."""
    large = json.dumps({"query": "quick", "documents": ["word " * 1000] * 20}).encode()
    request = POST + b"Content-Length: %d\r\n\r\n" % len(large) + large
    with connect(hasty) as connection:
        until_closed(connection, request)


def test_few_requests_wait_behind_one_that_is_answered() -> None:
    """However many a client pipelines: the rest is not read, and all are answered."""
    fake = FakeReranker()
    wait = json.dumps({"query": "wait", "documents": ["a"]}).encode()
    with running(fake, Settings(names=(MODEL,))) as url, connect(url) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(wait) + wait)
        assert fake.waiting.wait(30)
        connection.sendall(GET * 4999 + GET.replace(b"Host", b"Connection: close\r\nHost"))
        time.sleep(0.3)
        everything = gc.get_referrers(Connection)
        waiting = [len(one.pipeline) for one in everything if type(one) is Connection and one.cycle is not None]
        assert 0 < max(waiting) <= HEAD_PIECE / len(GET) + 1
        fake.gate.set()
        assert all_of(connection).count(b"HTTP/1.1 200 ") == 5001


def test_a_slow_reader_gets_its_answer(server: str) -> None:
    large = json.dumps({"query": "quick", "documents": ["word " * 10_000] * 100}).encode()
    with connect(server) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(large) + large)
        time.sleep(1)
        assert len(all_of(connection)) > 5_000_000


def test_idle_connections_make_room_for_new_ones(caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeReranker(), Settings(names=(MODEL,)), Connections(most=10)) as url:
        idle = [connect(url) for _ in range(10)]
        for connection in idle[5:]:
            connection.sendall(GET)
            assert connection.recv(1 << 16)
        for _ in range(3):
            assert requests.get(f"{url}/health", timeout=30).status_code == 200
        # The oldest are closed, those that were of use later not.
        idle[9].sendall(GET)
        assert idle[9].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        for connection in idle:
            connection.close()
    assert "10 connections are open" in caplog.text


def test_requests_that_do_not_arrive_make_room_for_others() -> None:
    """They may be given minutes, but not while others wait."""
    limits = Connections(most=10)
    with running(FakeReranker(), Settings(names=(MODEL,)), limits) as url:
        halves = [connect(url) for _ in range(10)]
        for number, connection in enumerate(halves):
            connection.sendall((GET, WHOLE)[number % 2][:-5])
        arrived = ["body"] * 5 + ["head"] * 5
        until(lambda: sorted(one._state for one in limits._waiting if isinstance(one, Connection)) == arrived)
        for _ in range(3):
            assert requests.get(f"{url}/health", timeout=30).status_code == 200
        halves[9].sendall(WHOLE[-5:])
        assert halves[9].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        halves[0].settimeout(20)  # less than a head has
        with suppress(ConnectionResetError):
            assert all_of(halves[0]) == b""
        for connection in halves:
            connection.close()


def test_where_no_connection_waits_for_its_client_a_new_one_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeReranker()
    wait = json.dumps({"query": "wait", "documents": ["a"]}).encode()
    with running(fake, Settings(names=(MODEL,)), Connections(most=3)) as url:
        busy = [connect(url) for _ in range(3)]
        for connection in busy:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(wait) + wait)
        until(lambda: len(fake.requests) == 3)
        assert exchanged(url, b"").startswith(b"HTTP/1.1 503 ")
        fake.gate.set()
        for connection in busy:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            connection.close()
        until(lambda: requests.get(f"{url}/health", timeout=30).status_code == 200)
    assert "connections are open" in caplog.text


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        most = most_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 65536) == most + 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
