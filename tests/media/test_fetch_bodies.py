"""Bodies of fetched files: limits, encodings, and answers that are cut."""

from __future__ import annotations

import gzip
import threading
import zlib
from typing import Any, BinaryIO

import pytest

from rerankd.media.limits import BadMedia
from tests.media.servers import Server, ok
from tests.media.test_fetch import fetch


@pytest.fixture
def server(server: Server) -> Server:
    server.answers["/a.png"] = ok(b"picture")
    return server


def test_a_stated_size_over_the_limit_is_not_read(server: Server) -> None:
    server.answers["/big"] = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n"
    with pytest.raises(BadMedia, match=r"over the limit of 1\.0 MiB"):
        fetch(server.url("/big"))


def test_the_byte_limit_lets_exactly_itself_through(server: Server) -> None:
    assert fetch(server.url("/a.png"), max_bytes=7) == b"picture"
    with pytest.raises(BadMedia, match="over the limit of 6 bytes"):
        fetch(server.url("/a.png"), max_bytes=6)


def test_bytes_are_counted_while_they_come(server: Server) -> None:
    stopped = threading.Event()

    def endless(file: BinaryIO) -> None:
        try:
            file.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                file.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        finally:
            stopped.set()

    server.answers["/endless"] = endless
    with pytest.raises(BadMedia, match="over the limit of"):
        fetch(server.url("/endless"))
    assert stopped.wait(30), "the connection is closed"


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_content_encodings(server: Server, coding: str, pack: Any) -> None:
    server.answers["/packed"] = ok(pack(b"picture" * 100), f"Content-Encoding: {coding}")
    assert fetch(server.url("/packed")) == b"picture" * 100


def test_a_compressed_bomb_is_not_unfolded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    unfolded: list[int] = []

    class Counting:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def decompress(self, *arguments: Any) -> bytes:
            data: bytes = self._inner.decompress(*arguments)
            unfolded.append(len(data))
            return data

    make = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda wbits: Counting(make(wbits)))
    bomb = gzip.compress(bytes(200 << 20), 9)
    assert len(bomb) < 1 << 20
    server.answers["/bomb"] = ok(bomb, "Content-Encoding: gzip")
    with pytest.raises(BadMedia, match=r"over the limit of 1\.0 MiB"):
        fetch(server.url("/bomb"))
    assert sum(unfolded) == (1 << 20) + 1, "one byte over the limit is enough to know"


def test_a_compressed_body_that_is_cut_or_broken(server: Server) -> None:
    server.answers["/cut"] = ok(gzip.compress(bytes(range(256)))[:-9], "Content-Encoding: gzip")
    server.answers["/broken"] = ok(b"not gzip at all", "Content-Encoding: gzip")
    with pytest.raises(BadMedia, match="cut short"):
        fetch(server.url("/cut"))
    with pytest.raises(BadMedia, match="does not decompress"):
        fetch(server.url("/broken"))


def test_an_unknown_content_encoding(server: Server) -> None:
    server.answers["/br"] = ok(b"x", "Content-Encoding: br")
    with pytest.raises(BadMedia, match="content encoding 'br'"):
        fetch(server.url("/br"))


def test_a_body_that_is_cut_short(server: Server) -> None:
    server.answers["/cut"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
    with pytest.raises(BadMedia, match="broke off"):
        fetch(server.url("/cut"))


def test_no_http_at_all(server: Server) -> None:
    server.answers["/ssh"] = b"SSH-2.0-OpenSSH\r\n"
    with pytest.raises(BadMedia, match="no proper HTTP"):
        fetch(server.url("/ssh"))
