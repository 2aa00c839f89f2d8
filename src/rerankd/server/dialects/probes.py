"""`parse` of endpoints that say whether the server, or one of its models, is well."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from rerankd.server.dialects.base import Call, Served
from rerankd.server.problems import ASLEEP, ENGINE_DEAD

Body = TypeVar("Body", bound=BaseModel)


def ready(body: Body, served: Served) -> Call[Body]:
    """Whether calls are answered. Raises the 503 Problem that they would get."""
    if unready := served.unready():
        raise unready.anew()
    return Call(body, ())


def model_ready(body: Body, served: Served) -> Call[Body]:
    """Whether calls of this model are. Raises the 503 Problem that they would get."""
    if served.asleep():
        raise ASLEEP.anew()
    return ready(body, served)


def live(body: Body, served: Served) -> Call[Body]:
    """Whether the engine works, while the server ends too. Raises a 503 Problem."""
    if served.unready() is ENGINE_DEAD:
        raise ENGINE_DEAD.anew()
    return Call(body, ())
