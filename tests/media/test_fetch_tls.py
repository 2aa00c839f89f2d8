"""Fetching over HTTPS: certificates, names, and redirects between the schemes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator

import pytest
import trustme

from rerankd.media.budget import Budget
from rerankd.media.fetch import Fetcher
from rerankd.media.limits import BadMedia, MediaLimits
from tests.media.servers import Server, ok, serving, to
from tests.media.test_fetch import fetch, resolver


@pytest.fixture
def server(server: Server) -> Server:
    server.answers["/a.png"] = ok(b"picture")
    return server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pictures.test").configure_cert(context)
    with serving(context) as running:
        running.answers["/a.png"] = ok(b"picture")
        yield running


LOCAL = resolver(pictures_test=["127.0.0.1"], other_test=["127.0.0.1"])


def test_certificates_are_checked_against_the_name(secure: Server, authority: trustme.CA) -> None:
    tls = trusting(authority)
    url = secure.url("/a.png", "pictures.test", "https")
    assert fetch(url, tls=tls, resolve=LOCAL) == b"picture"
    assert secure.names == ["pictures.test"], "the name is asked for, not the address"
    assert secure.seen[0].headers["host"] == f"pictures.test:{secure.port}"
    with pytest.raises(BadMedia, match="no secure connection"):
        fetch(secure.url("/a.png", "other.test", "https"), tls=tls, resolve=LOCAL)
    with pytest.raises(BadMedia, match="no secure connection"):
        fetch(url, resolve=LOCAL)
    assert len(secure.seen) == 1


def test_a_connection_checked_for_one_name_is_not_used_for_another(secure: Server, authority: trustme.CA) -> None:
    secure.answers["/kept"] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    async def both() -> None:
        async with Fetcher(MediaLimits(), trusting(authority), LOCAL, True) as fetcher:
            files = Budget(100, "files")
            assert (await fetcher.get(secure.url("/kept", "pictures.test", "https"), 100, files)).data == b"hi"
            with pytest.raises(BadMedia):
                await fetcher.get(secure.url("/kept", "other.test", "https"), 100, files)

    asyncio.run(both())
    assert secure.names == ["pictures.test", "other.test"]


def test_from_https_down_to_http_is_refused(secure: Server, server: Server, authority: trustme.CA) -> None:
    secure.answers["/down"] = to(server.url("/a.png"))
    with pytest.raises(BadMedia, match="redirects from https to http"):
        fetch(secure.url("/down", "pictures.test", "https"), tls=trusting(authority), resolve=LOCAL)
    assert server.seen == []


def test_from_http_up_to_https_is_followed(secure: Server, server: Server, authority: trustme.CA) -> None:
    server.answers["/up"] = to(secure.url("/a.png", "pictures.test", "https"))
    url = server.url("/up", "pictures.test")
    assert fetch(url, tls=trusting(authority), resolve=LOCAL) == b"picture"
