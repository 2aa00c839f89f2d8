"""Clients of TEI's gRPC API that send too much, too slowly, or without a key: each is bounded, and no other waits."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.limits import RequestLimits
from rerankd.server.settings import Settings
from rerankd.server.tei_grpc.intake import PLACES
from rerankd.server.tei_grpc.server import Bounds
from rerankd.server.tei_grpc.wire import has_more_fields
from tests.server.fakes import MODEL, FakeReranker
from tests.server.grpc_running import Both, both, tei
from tests.server.test_clients_that_leave import until
from tests.server.test_grpc import refused

Code = grpc.StatusCode
QUICK = tei.RerankRequest(query="a", texts=["b"])
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
MAX_CONCURRENT_STREAMS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Both]:
    limits = RequestLimits(documents=20, values=2_000)
    with both(FakeReranker(), Settings(names=(MODEL,), max_body=1 << 17, limits=limits)) as server:
        yield server


class Http2:
    """A client that writes its own frames (RFC 9113), with headers that no table has (RFC 7541, 6.2.2)."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._frame(SETTINGS, 0, 0, b"")

    def call(self, stream: int, path: str, message: bytes) -> None:
        """Begin a call on a stream, an odd number, and send some of a message."""
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
        headers["content-type"] = "application/grpc"
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        self._frame(HEADERS, END_HEADERS, stream, block)
        self._frame(DATA, 0, stream, message)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The server's frames as they come: kind, flags, stream, content."""
        reader = self.socket.makefile("rb")
        while head := reader.read(9):
            size = int.from_bytes(head[:3], "big")
            yield head[3], head[4], int.from_bytes(head[5:], "big"), reader.read(size)

    def ended(self) -> int:
        """The next stream that the server ends."""
        return next(
            stream for kind, flags, stream, _ in self.frames() if kind == HEADERS and flags & END_STREAM and stream
        )

    def _frame(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        self.socket.sendall(
            struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content
        )


def half(size: int = 50_000) -> bytes:
    """The first bytes of a message of `size` bytes: a flag, the length, and a few of the rest."""
    return b"\0" + struct.pack(">I", size) + b"\x0a"


def test_a_compressed_message_is_not_unfolded(server: Both) -> None:
    bomb = tei.RerankRequest(query="a", texts=["b" * 100_000])
    failed = refused(lambda: server.Rerank.Rerank(bomb, compression=grpc.Compression.Gzip))
    assert failed.code() == Code.UNIMPLEMENTED
    assert len(server.Rerank.Rerank(QUICK).ranks) == 1


@pytest.mark.parametrize(
    ("method", "message", "details"),
    [
        ("Rerank", tei.RerankRequest(query="a", texts=[""] * 40_000), "The message holds more than 20 documents"),
        ("Decode", tei.DecodeRequest(ids=[1] * 2_001), "ids: holds more than 2,000 JSON values"),
    ],
)
def test_a_message_of_very_many_elements(server: Both, method: str, message: Any, details: str) -> None:
    stub = server.Tokenize if method == "Decode" else server.Rerank
    failed = refused(lambda: getattr(stub, method)(message))
    assert failed.code() == Code.INVALID_ARGUMENT
    assert failed.details().startswith(details)


def test_what_is_no_message_is_a_wrong_argument(server: Both) -> None:
    for path, raw in (("/tei.v1.Rerank/Rerank", b"\x0a\xff"), ("/tei.v1.Embed/Embed", b"\x0a\x01\xff")):
        failed = refused(lambda path=path, raw=raw: server.channel.unary_unary(path)(raw))
        assert failed.code() == Code.INVALID_ARGUMENT
        assert "The message is no tei.v1." in failed.details()
    empty = refused(lambda: server.channel.stream_unary("/tei.v1.Rerank/Rerank")(iter([])))
    assert (empty.code(), empty.details()) == (Code.INVALID_ARGUMENT, "The call has no message.")


def test_nothing_of_a_caller_without_a_key_is_received() -> None:
    """The refusal comes before a message does."""
    with both(FakeReranker(), Settings(names=(MODEL,), keys=("k",))) as server:
        never = threading.Event()

        def messages() -> Iterator[Any]:
            never.wait(60)
            yield from ()

        try:
            answers = [server.Rerank.RerankStream.future(messages()), server.Predict.PredictStream(messages())]
            assert [answer.code() for answer in answers] == [Code.UNAUTHENTICATED] * 2
        finally:
            never.set()
        client = Http2(server.port)
        client.call(1, "/tei.v1.Rerank/Rerank", half())
        assert client.ended() == 1


def test_a_message_that_does_not_arrive_in_time_is_given_up() -> None:
    with both(FakeReranker(), Settings(names=(MODEL,), body_timeout=0.3)) as server:
        client = Http2(server.port)
        client.call(1, "/tei.v1.Rerank/Rerank", half())
        assert client.ended() == 1
        assert len(server.Rerank.Rerank(QUICK).ranks) == 1


def test_messages_that_do_not_arrive_keep_no_other_waiting(server: Both) -> None:
    """The one that has been on its way for longest gives its place."""
    client = Http2(server.port)
    streams = [1 + 2 * number for number in range(2 * PLACES)]
    for stream in streams:
        client.call(stream, "/tei.v1.Predict/PredictStream" if stream % 4 == 1 else "/tei.v1.Rerank/Rerank", half())
    assert len(server.Rerank.Rerank(QUICK, timeout=30).ranks) == 1
    assert client.ended() in streams
    client.socket.close()
    until(lambda: len(server.Rerank.Rerank(QUICK, timeout=30).ranks) == 1)


def test_messages_together_are_bounded() -> None:
    """Those of a stream that has not ended yet, and of calls that are being answered."""
    fake = FakeReranker()
    with both(fake, Settings(names=(MODEL,), max_body=1 << 17, max_bodies=1 << 17)) as server:
        large = [tei.RerankStreamRequest(query="wait", text="b" * 1_000) for _ in range(100)]
        waiting = server.Rerank.RerankStream.future(iter(large))
        assert fake.waiting.wait(30)
        failed = refused(lambda: server.Rerank.RerankStream(iter(large)))
        assert failed.code() == Code.RESOURCE_EXHAUSTED
        assert "--max-bodies-mb" in failed.details()
        fake.gate.set()
        assert len(waiting.result(30).ranks) == 100
        assert len(server.Rerank.RerankStream(iter(large)).ranks) == 100


def test_connections_are_bounded() -> None:
    bounds = Bounds(connections=1, streams=7, handshake_seconds=0.3)
    with both(FakeReranker(), Settings(names=(MODEL,)), bounds) as server:
        silent = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        assert b"".join(iter(lambda: silent.recv(1 << 16), b"")) is not None  # until the server closes it
        until(lambda: len(server.Rerank.Rerank(QUICK, wait_for_ready=True, timeout=30).ranks) == 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as second:
            assert second.recv(1) == b""
    with both(FakeReranker(), Settings(names=(MODEL,)), bounds) as server:
        content = next(
            content for kind, flags, _, content in Http2(server.port).frames() if kind == SETTINGS and content
        )
        told = dict(struct.unpack(">HI", content[at : at + 6]) for at in range(0, len(content), 6))
        assert told[MAX_CONCURRENT_STREAMS] == 7


@given(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=30), st.booleans())
def test_the_fields_of_a_message_are_counted(query: str, texts: list[str], truncate: bool) -> None:
    message = tei.RerankRequest(query=query, texts=texts, truncate=truncate)
    count = bool(query) + len(texts) + truncate
    assert not has_more_fields(message.SerializeToString(), count)
    assert not count or has_more_fields(message.SerializeToString(), count - 1)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_counted(raw: bytes) -> None:
    assert not has_more_fields(raw, len(raw))
