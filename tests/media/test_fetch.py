"""Fetching over HTTP: addresses, names, redirects, times."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import httpcore
import pytest

from rerankd.media.budget import Budget
from rerankd.media.fetch import Fetcher, Resolve, default_tls, system_resolver
from rerankd.media.limits import BadMedia, MediaLimits
from tests.media.servers import Server, ok, to

PUBLIC = "93.184.216.34"
OTHER_PUBLIC = "8.8.8.8"


def resolver(**answers: Sequence[str]) -> Resolve:
    """Names, written with _ for a dot, and the addresses that each look-up gives; lists go look-up by look-up."""
    left = {name.replace("_", "."): list(addresses) for name, addresses in answers.items()}

    async def resolve(host: str, port: int) -> list[str]:
        if host not in left:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        now = left[host][0] if len(left[host]) == 1 else left[host].pop(0)
        return now.split()

    return resolve


SYSTEM = system_resolver(ThreadPoolExecutor(2))


def fetch(
    url: str,
    *,
    max_bytes: int = 1 << 20,
    limits: MediaLimits | None = None,
    tls: ssl.SSLContext | None = None,
    allow_private: bool = True,
    resolve: Resolve = SYSTEM,
) -> bytes:
    async def run() -> bytes:
        async with Fetcher(limits or MediaLimits(), tls or default_tls(), resolve, allow_private) as fetcher:
            return (await fetcher.get(url, max_bytes, Budget(max_bytes, "files"))).data

    return asyncio.run(run())


@pytest.fixture
def server(server: Server) -> Server:
    server.answers["/a.png"] = ok(b"picture")
    return server


@pytest.fixture
def internet(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address leads to the local server; the list says which were dialled."""
    dialled: list[str] = []
    connect = httpcore.AnyIOBackend.connect_tcp

    async def dial(
        self: httpcore.AnyIOBackend,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        dialled.append(host)
        return await connect(self, "127.0.0.1", server.port, timeout)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", dial)
    return dialled


def test_a_body_is_fetched_with_plain_headers(server: Server) -> None:
    assert fetch(server.url("/a.png")) == b"picture"
    (seen,) = server.seen
    assert seen.headers["host"] == f"127.0.0.1:{server.port}"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["user-agent"].startswith("rerankd/")
    assert not {"cookie", "authorization"} & set(seen.headers)


def test_the_query_is_sent_and_the_fragment_is_not(server: Server) -> None:
    server.answers["/a.png?size=2&name=%C3%A9"] = ok(b"second")
    assert fetch(server.url("/a.png?size=2&name=é#top")) == b"second"


def test_proxies_of_the_environment_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(server.url("/a.png")) == b"picture"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
def test_this_machine_is_out_of_reach_by_any_name(server: Server, host: str) -> None:
    with pytest.raises(BadMedia, match=r"not on the public internet|has no address"):
        fetch(server.url("/a.png", host), allow_private=False)
    assert server.seen == []


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "240.0.0.1",
        "fd00:ec2::254",
        "fe80::1%lo",
        "ff02::1",
        f"{PUBLIC} 127.0.0.1",
        f"{PUBLIC} ::ffff:10.0.0.1",
    ],
)
def test_a_name_that_leads_inside_is_refused(internet: list[str], server: Server, address: str) -> None:
    with pytest.raises(BadMedia, match=r"'pictures\.test' is not on the public internet") as caught:
        fetch("http://pictures.test/a.png", allow_private=False, resolve=resolver(pictures_test=[address]))
    assert internet == []
    assert address.split()[-1] not in str(caught.value), "an error is no oracle for internal addresses"


def test_a_public_name_is_dialled_by_the_checked_address(internet: list[str], server: Server) -> None:
    resolve = resolver(pictures_test=[PUBLIC, "127.0.0.1"])
    assert fetch("http://pictures.test/a.png", allow_private=False, resolve=resolve) == b"picture"
    assert internet == [PUBLIC], "one look-up, and no other address than the one that was checked"
    assert server.seen[0].headers["host"] == "pictures.test"


def test_a_name_that_changes_between_two_hops_is_checked_again(internet: list[str], server: Server) -> None:
    server.answers["/hop"] = to("/a.png")
    resolve = resolver(pictures_test=[PUBLIC, "127.0.0.1"])
    with pytest.raises(BadMedia, match="not on the public internet"):
        fetch("http://pictures.test/hop", allow_private=False, resolve=resolve)
    assert internet == [PUBLIC]


@pytest.mark.parametrize("inside", ["http://127.0.0.1/a.png", "http://inside.test/a.png", "//[::1]/a.png"])
def test_a_redirect_inside_is_refused(internet: list[str], server: Server, inside: str) -> None:
    server.answers["/hop"] = to(inside)
    resolve = resolver(
        **{"pictures_test": [PUBLIC], "inside_test": ["10.1.2.3"], "127_0_0_1": ["127.0.0.1"], "::1": ["::1"]}
    )
    with pytest.raises(BadMedia, match="not on the public internet"):
        fetch("http://pictures.test/hop", allow_private=False, resolve=resolve)
    assert internet == [PUBLIC]


def test_the_next_address_is_tried(server: Server) -> None:
    resolve = resolver(pictures_test=["127.0.0.2 127.0.0.1"])  # nothing listens on the first
    assert fetch(server.url("/a.png", "pictures.test"), resolve=resolve) == b"picture"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, status: int) -> None:
    server.answers["/one"] = to("/two?x=1", status)
    server.answers["/two?x=1"] = to(server.url("/a.png"), status)
    assert fetch(server.url("/one")) == b"picture"


def test_the_limit_for_redirects(server: Server) -> None:
    for hop in range(5):
        server.answers[f"/{hop}"] = to(f"/{hop + 1}")
    server.answers["/5"] = ok(b"there")
    assert fetch(server.url("/0"), limits=MediaLimits(redirects=5)) == b"there"
    with pytest.raises(BadMedia, match="redirects more than 4 times"):
        fetch(server.url("/0"), limits=MediaLimits(redirects=4))


def test_a_redirect_in_a_circle_ends(server: Server) -> None:
    server.answers["/loop"] = to("/loop")
    with pytest.raises(BadMedia, match="redirects more than 5 times"):
        fetch(server.url("/loop"))
    assert len(server.seen) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "data:image/png;base64,AAAA", "ftp://x.test/a", "gopher://x"])
def test_a_redirect_to_another_scheme_is_refused(server: Server, target: str) -> None:
    server.answers["/hop"] = to(target)
    with pytest.raises(BadMedia, match=r"only http\(s\) is followed"):
        fetch(server.url("/hop"))


@pytest.mark.parametrize("status", [204, 206, 304, 403, 404, 500, 503])
def test_any_other_status_is_an_error(server: Server, status: int) -> None:
    server.answers["/x"] = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    with pytest.raises(BadMedia, match=f"answered {status} instead of 200"):
        fetch(server.url("/x"))


def test_the_timeout_is_for_the_whole_fetch(server: Server) -> None:
    done = threading.Event()

    def drip(file: BinaryIO) -> None:
        file.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not done.wait(0.05):  # every single read is quick
            file.write(b".")
            file.flush()

    server.answers["/drip"] = drip
    with pytest.raises(BadMedia, match=r"not fetched within 0\.5 seconds"):
        fetch(server.url("/drip"), limits=MediaLimits(timeout=0.5))
    done.set()


def test_the_timeout_holds_for_a_resolver(server: Server) -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(BadMedia, match="not fetched within"):
        fetch("http://pictures.test/", limits=MediaLimits(timeout=0.2), resolve=slow)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(BadMedia, match=r"no connection to '127\.0\.0\.1' on port"):
            fetch(f"http://127.0.0.1:{free.getsockname()[1]}/")


def test_an_unknown_name() -> None:
    with pytest.raises(BadMedia, match=r"host 'nowhere\.test' has no address"):
        fetch("http://nowhere.test/", resolve=resolver())


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://", "names no host"),
        ("http:///a.png", "names no host"),
        ("http://x:99999999/", "malformed|no address"),
        ("http://x\n.test/", "malformed"),
        ("http://xn--a/", "malformed"),
        ("http://user:secret@x.test/", "user name or password"),
    ],
)
def test_urls_that_cannot_be_fetched(url: str, problem: str) -> None:
    with pytest.raises(BadMedia, match=problem) as caught:
        fetch(url, resolve=resolver())
    assert "secret" not in str(caught.value)


def test_memory_is_held_before_a_body_is_read_and_waiting_for_it_is_no_fetching(server: Server) -> None:
    server.answers["/a"] = ok(b"x" * 60, "Content-Type: Image/PNG; q=1")
    server.answers["/chunked"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

    async def run() -> None:
        files = Budget(100, "files")
        limits = MediaLimits(timeout=3.0)
        async with Fetcher(limits, default_tls(), SYSTEM, True) as fetcher:
            first = await fetcher.get(server.url("/a"), 100, files)
            assert (len(first.data), files.held, first.media_type) == (60, 60, "Image/PNG")
            second = asyncio.create_task(fetcher.get(server.url("/a"), 100, files))
            await asyncio.sleep(3.5)
            assert not second.done(), "it waits longer than fetching may take"
            first.lease.release()
            held = (await second).lease
            assert files.held == 60
            held.release()
            unknown = await fetcher.get(server.url("/chunked"), 100, files)
            assert (unknown.data, files.held, unknown.media_type) == (b"hello", 5, None)
            unknown.lease.release()
            rest = await files.hold(10)
            third = asyncio.create_task(fetcher.get(server.url("/chunked"), 100, files))
            while not files._queue:
                await asyncio.sleep(0.01)
            third.cancel()
            with pytest.raises(asyncio.CancelledError):
                await third
            rest.release()
        assert files.held == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["text/html\x00secret", "a b", "x" * 100 + "/y", ""])
def test_a_content_type_that_is_none_is_not_passed_on(server: Server, kind: str) -> None:
    server.answers["/a"] = ok(b"x", f"Content-Type: {kind.replace(chr(0), ' ')}")

    async def run() -> str | None:
        async with Fetcher(MediaLimits(), default_tls(), SYSTEM, True) as fetcher:
            return (await fetcher.get(server.url("/a"), 100, Budget(100, "files"))).media_type

    assert asyncio.run(run()) in (None, "text/html")
