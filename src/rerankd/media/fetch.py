"""Fetching http(s) URLs from untrusted requests, from the open internet only."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

import httpcore
import httpx

from rerankd.media.addresses import is_public
from rerankd.media.budget import Budget, Lease
from rerankd.media.limits import BadMedia, MediaLimits, over_bytes
from rerankd.version import __version__

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to numeric addresses; raises OSError where there are none."""

Result = TypeVar("Result")

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (
    ("User-Agent", f"rerankd/{__version__}"),
    ("Accept", "image/*,video/*,*/*;q=0.5"),
    ("Accept-Encoding", "identity"),
)


def system_resolver(threads: Executor) -> Resolve:
    """Look names up with the operating system, in `threads`.

    A look-up cannot be cancelled, and whoever owns a name decides how long one takes: in an event loop's own
    threads a few of them would hold up everything else that runs there.
    """

    async def resolve(host: str, port: int) -> list[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(threads, look_up)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    return resolve


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were checked, so that no later look-up can change them.

    TLS and the Host header above it still go by the URL's host name.
    """

    def __init__(self, resolve: Resolve, allow_private: bool) -> None:
        self._tcp = httpcore.AnyIOBackend()
        self._resolve = resolve
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise BadMedia(f"host {host!r} has no address; check the URL") from error
        # One address that is not public condemns the host: its owner chooses which of them answers.
        if not self._allow_private and not all(is_public(address) for address in addresses):
            raise BadMedia(
                f"host {host!r} is not on the public internet, and fetching from private, loopback and "
                "link-local addresses is not allowed; send the file as a data: URI"
            )
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._tcp.connect_tcp(
                    address,
                    port,
                    timeout=None if timeout is None else timeout / len(addresses),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise BadMedia(f"no connection to {host!r} on port {port}") from failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise BadMedia("local sockets are not fetched from")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def default_tls() -> ssl.SSLContext:
    """Certificates as httpx ships them; nothing is read from the environment."""
    return httpx.create_ssl_context(trust_env=False)


class Fetched(NamedTuple):
    """A body, its memory, and the content type that its server gives; None for none."""

    data: bytes
    held: Lease
    media_type: str | None


class _Clock:
    """The rest of a number of seconds, counted only while something runs within them."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    async def within(self, work: Awaitable[Result]) -> Result:
        began = time.monotonic()
        try:
            return await asyncio.wait_for(work, max(0.0, self._left))
        finally:
            self._left -= time.monotonic() - began


class Fetcher:
    """Connections for the URLs of one request; an async context manager, used in one event loop.

    Proxies, cookies and credentials of the environment are never used. Connections are kept per host name,
    so that a certificate that was checked for one name never vouches for another.
    """

    def __init__(
        self,
        limits: MediaLimits,
        tls: ssl.SSLContext,
        resolve: Resolve,
        allow_private: bool = False,
    ) -> None:
        self._limits = limits
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls, network_backend=_CheckedBackend(resolve, allow_private)
        )

    async def __aenter__(self) -> Fetcher:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def get(self, url: str, max_bytes: int, memory: Budget) -> Fetched:
        """The body behind an http(s) URL. Before it is read, as many bytes of `memory` are held as it may have.

        Raises BadMedia for a URL that is malformed, not public, not answered with 200 in `MediaLimits.timeout`
        seconds, redirected more than `MediaLimits.redirects` times or to another scheme than http(s) or from
        https to http, or whose body is over `max_bytes` or cut short.
        """
        seconds = self._limits.timeout
        try:
            return await self._follow(url, max_bytes, memory, _Clock(seconds))
        except (asyncio.TimeoutError, httpcore.TimeoutException) as error:
            raise BadMedia(
                f"the URL was not fetched within {seconds:g} seconds; try again or send a data: URI"
            ) from error

    async def _follow(self, url: str, max_bytes: int, memory: Budget, clock: _Clock) -> Fetched:
        here = _parse(url)
        for _ in range(self._limits.redirects + 1):
            found = await self._once(here, max_bytes, memory, clock)
            if isinstance(found, Fetched):
                return found
            there = _parse(found, base=here)
            if here.scheme == "https" and there.scheme == "http":
                raise BadMedia("the URL redirects from https to http; use the final URL")
            here = there
        raise BadMedia(f"the URL redirects more than {self._limits.redirects} times; use the final URL")

    async def _once(self, url: httpx.URL, max_bytes: int, memory: Budget, clock: _Clock) -> Fetched | str:
        """A body, or the target of a redirect."""
        seconds = self._limits.timeout
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        timeouts = {"timeout": {"connect": seconds, "read": seconds, "write": seconds, "pool": seconds}}
        try:
            async with AsyncExitStack() as exchange:
                answer = self._pool.stream("GET", target, headers=_HEADERS, extensions=timeouts)
                response = await clock.within(exchange.enter_async_context(answer))
                answered = {name.lower().decode(): value.decode("latin-1") for name, value in response.headers}
                if response.status in _REDIRECTS and "location" in answered:
                    return answered["location"]
                if response.status != 200:
                    raise BadMedia(f"the URL's server answered {response.status} instead of 200; check the URL")
                coding = _coding(answered.get("content-encoding", ""))
                length = answered.get("content-length", "")
                size = int(length) if length.isdigit() else max_bytes
                if size > max_bytes:
                    raise over_bytes(max_bytes)
                held = await memory.hold(max_bytes if coding else size)
                try:
                    body = await clock.within(_body(response, coding, max_bytes))
                except BaseException:
                    held.release()
                    raise
        except httpcore.ConnectError as error:  # plain connections have errors of their own
            raise BadMedia(f"no secure connection to {url.host!r} ({error})") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise BadMedia(f"the URL's server broke off or spoke no proper HTTP ({error})") from error
        held.shrink(len(body))
        media_type = _MEDIA_TYPE.match(answered.get("content-type", ""))
        return Fetched(body, held, media_type and media_type[0])


def _coding(encoding: str) -> str | None:
    coding = encoding.strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise BadMedia(f"the URL's server sent content encoding {coding!r}, which was not asked for")
    return None if coding in ("", "identity") else coding


async def _body(response: httpcore.Response, coding: str | None, max_bytes: int) -> bytes:
    """The response's body, decoded piece by piece so that a small body cannot unfold into a large one."""
    inflate = zlib.decompressobj(wbits=47) if coding else None
    body = io.BytesIO()
    received = 0
    async for chunk in response.aiter_stream():
        received += len(chunk)
        if inflate is not None:
            try:
                chunk = inflate.decompress(chunk, max_bytes + 1 - body.tell())
            except zlib.error as error:
                raise BadMedia("the URL's server sent a body that does not decompress") from error
        body.write(chunk)
        if max(body.tell(), received) > max_bytes:
            raise over_bytes(max_bytes)
    if inflate is not None and not inflate.eof:
        raise BadMedia("the URL's server sent a compressed body that is cut short")
    return body.getvalue()


def _parse(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
        host = parsed.host  # it decodes international names, and may fail
    except (httpx.InvalidURL, ValueError) as error:
        raise BadMedia(f"the URL is malformed ({error})") from error
    if parsed.scheme not in ("http", "https"):
        raise BadMedia(f"the URL redirects to {parsed.scheme or 'no'}:, and only http(s) is followed")
    if not host:
        raise BadMedia("the URL names no host")
    if parsed.userinfo:
        raise BadMedia("the URL carries a user name or password, which are not sent; use a signed URL")
    return parsed
