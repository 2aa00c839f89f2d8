"""HTTP requests as the service takes them, and its replies as HTTP responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from rerankd.server.incoming import Gone
from rerankd.server.replies import Reply


class HttpCall:
    """An `Incoming` of an HTTP request."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers."""
        return self._request.headers

    @property
    def parameters(self) -> Mapping[str, str]:
        """The values of the path's parameters."""
        return self._request.path_params

    @property
    def model(self) -> str | None:
        """`?model=NAME`."""
        return self._request.query_params.get("model")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Gone."""
        try:
            async for chunk in self._request.stream():
                yield chunk
        except ClientDisconnect:
            raise Gone from None

    async def hung_up(self) -> None:
        """Return once the client has hung up."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def response_of(reply: Reply) -> Response:
    """A reply as Starlette sends it."""
    return Response(reply.body, reply.status, reply.headers, reply.media_type)
