"""Fetching http(s) URLs of untrusted requests, from the public internet only."""

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
"""Resolves a host name and a port to numeric addresses. Raises OSError if there are none."""

Result = TypeVar("Result")

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = (
    ("User-Agent", f"rerankd/{__version__}"),
    ("Accept", "image/*,video/*,*/*;q=0.5"),
    ("Accept-Encoding", "identity"),
)


def system_resolver(threads: Executor) -> Resolve:
    """A resolver that uses the operating system, in separate threads.

    A look-up cannot be cancelled, and the owner of a name decides how long it takes. In the event loop's default
    threads, a few slow look-ups would block everything else that runs there.
    """

    async def resolve(host: str, port: int) -> list[str]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        entries = await asyncio.get_running_loop().run_in_executor(threads, look_up)
        return list(dict.fromkeys(str(entry[4][0]) for entry in entries))

    return resolve


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a host, checks the addresses, and connects to exactly these addresses (against DNS rebinding).

    TLS and the Host header still use the host name of the URL.
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
        # One private address is enough to refuse the host, because its owner decides which address answers.
        if not self._allow_private and not all(is_public(address) for address in addresses):
            raise BadMedia(
                f"host {host!r} is not on the public internet, and fetching from private, loopback and link-local "
                "addresses is not allowed; send the file as a data: URI, or ask the server's administrator to allow "
                "such addresses with --allow-private-media"
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
        raise BadMedia("fetching from local sockets is not supported")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def default_tls() -> ssl.SSLContext:
    """A TLS context with the certificates of httpx. Environment variables are ignored."""
    return httpx.create_ssl_context(trust_env=False)


class Fetched(NamedTuple):
    """A fetched file.

    lease: the memory that is reserved for `data`
    media_type: the content type that the server gave; None for none
    """

    data: bytes
    lease: Lease
    media_type: str | None


class _Clock:
    """A time limit over several steps. Time between the steps does not count."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    async def within(self, work: Awaitable[Result]) -> Result:
        """Await `work` in the time that is left. Raises TimeoutError."""
        began = time.monotonic()
        try:
            return await asyncio.wait_for(work, max(0.0, self._left))
        finally:
            self._left -= time.monotonic() - began


class Fetcher:
    """Fetches the URLs of one request. An asynchronous context manager, for one event loop.

    Proxies, cookies and credentials from the environment are never used. Connections are reused only for the same host
    name, because a certificate was checked for that name alone.
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
        """Fetch the body of an http(s) URL. Bytes of `memory` are reserved before the body is read.

        Raises BadMedia if the URL is malformed or not public; if the answer is not 200, or later than
        `MediaLimits.timeout` seconds; if there are more than `MediaLimits.redirects` redirects, or one to another
        scheme or from https to http; and if the body is over `max_bytes` or cut short.
        """
        seconds = self._limits.timeout
        try:
            return await self._follow(url, max_bytes, memory, _Clock(seconds))
        except (asyncio.TimeoutError, httpcore.TimeoutException) as error:
            raise BadMedia(
                f"the URL was not fetched within {seconds:g} seconds; try again or send a data: URI"
            ) from error

    async def _follow(self, url: str, max_bytes: int, memory: Budget, clock: _Clock) -> Fetched:
        current = _parse(url)
        for _ in range(self._limits.redirects + 1):
            answer = await self._once(current, max_bytes, memory, clock)
            if isinstance(answer, Fetched):
                return answer
            target = _parse(answer, base=current)
            if current.scheme == "https" and target.scheme == "http":
                raise BadMedia("the URL redirects from https to http; use the final URL")
            current = target
        raise BadMedia(f"the URL redirects more than {self._limits.redirects} times; use the final URL")

    async def _once(self, url: httpx.URL, max_bytes: int, memory: Budget, clock: _Clock) -> Fetched | str:
        """Send one request. Returns the body, or the target of a redirect."""
        seconds = self._limits.timeout
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        timeouts = {"timeout": {"connect": seconds, "read": seconds, "write": seconds, "pool": seconds}}
        try:
            async with AsyncExitStack() as exchange:
                answer = self._pool.stream("GET", target, headers=_HEADERS, extensions=timeouts)
                response = await clock.within(exchange.enter_async_context(answer))
                headers = {name.lower().decode(): value.decode("latin-1") for name, value in response.headers}
                if response.status in _REDIRECTS and "location" in headers:
                    return headers["location"]
                if response.status != 200:
                    raise BadMedia(f"the URL's server answered {response.status} instead of 200; check the URL")
                coding = _coding(headers.get("content-encoding", ""))
                length = headers.get("content-length", "")
                size = int(length) if length.isdigit() else max_bytes
                if size > max_bytes:
                    raise over_bytes(max_bytes)
                lease = await memory.hold(max_bytes if coding else size)
                try:
                    body = await clock.within(_body(response, coding, max_bytes))
                except BaseException:
                    lease.release()
                    raise
        except httpcore.ConnectError as error:  # the backend above raises BadMedia for TCP, so this is TLS
            raise BadMedia(f"no secure connection to {url.host!r} ({error})") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise BadMedia(f"the URL's server broke off or spoke no proper HTTP ({error})") from error
        lease.shrink(len(body))
        media_type = _MEDIA_TYPE.match(headers.get("content-type", ""))
        return Fetched(body, lease, media_type and media_type[0])


def _coding(encoding: str) -> str | None:
    coding = encoding.strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise BadMedia(f"the URL's server sent content encoding {coding!r}, which the request does not allow")
    return None if coding in ("", "identity") else coding


async def _body(response: httpcore.Response, coding: str | None, max_bytes: int) -> bytes:
    """The response's body, decompressed piece by piece, so that a small body cannot expand beyond `max_bytes`."""
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
        host = parsed.host  # decodes international names, and may raise
    except (httpx.InvalidURL, ValueError) as error:
        raise BadMedia(f"the URL is malformed ({error})") from error
    if parsed.scheme not in ("http", "https"):
        raise BadMedia(f"the URL redirects to {parsed.scheme or 'no'}:, and only http(s) is followed")
    if not host:
        raise BadMedia("the URL names no host")
    if parsed.userinfo:
        raise BadMedia("the URL carries a user name or password, which are not sent; use a signed URL")
    return parsed
