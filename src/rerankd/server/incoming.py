"""A call, whatever the transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Gone(Exception):
    """The client hung up before the answer."""


class Incoming(Protocol):
    """A call as answering reads it. `headers` have names in lower case."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The call's headers."""
        ...

    @property
    def parameters(self) -> Mapping[str, str]:
        """The values of the path's parameters."""
        ...

    @property
    def model(self) -> str | None:
        """The model that a call without a body names, by its query string."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Gone."""
        ...

    async def hung_up(self) -> None:
        """Return once the client has hung up. Not before the body was read."""
        ...


@dataclass(frozen=True, slots=True)
class WholeCall:
    """A complete call, whose caller waits."""

    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    parameters: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in one piece."""
        yield self.body

    async def hung_up(self) -> None:
        """Never return."""
        await asyncio.get_running_loop().create_future()
