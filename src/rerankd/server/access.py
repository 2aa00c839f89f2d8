"""Who may call: API keys as Bearer tokens (RFC 6750)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rerankd.server.problems import Problem

UNAUTHORIZED = Problem(401, "An API key that this server knows is required, as in `Authorization: Bearer KEY`.")


class Keys:
    """The keys that open the server. Where there are none, all calls come in."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def known(self, authorization: str) -> bool:
        """Whether a header `Authorization` has one of the keys."""
        if not self._digests:
            return True
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        key_digest = _digest(key.strip().encode("latin-1"))
        # Every key is compared, each in constant time, so that the time reveals nothing about a key.
        return sum(hmac.compare_digest(key_digest, digest) for digest in self._digests) > 0


class KeyCheck:
    """An ASGI app that lets calls with one of the keys through to another app, and refuses the others.

    open: paths that need no key
    refuse: makes the answer to a call without a key
    """

    def __init__(
        self, app: ASGIApp, keys: tuple[str, ...], open: frozenset[str], refuse: Callable[[Request], Response]
    ) -> None:
        self._app = app
        self._keys = Keys(keys)
        self._open = open
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or get_route_path(scope) in self._open or self._knows(Request(scope)):
            await self._app(scope, receive, send)
        else:
            response = self._refuse(Request(scope))
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)

    def _knows(self, request: Request) -> bool:
        return self._keys.known(request.headers.get("authorization", ""))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
