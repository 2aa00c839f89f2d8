"""The errors of a call, before a dialect gives them its own shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rerankd.core import RerankdError
from rerankd.limits import RequestLimits
from rerankd.schemas.lists import OVER_LIMIT, Counted

Body = TypeVar("Body", bound=BaseModel)
MOST_CHARACTERS = 1000
"""The most characters of an error's message, and of the field in it: both may repeat text of a body."""


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


class Problem(RerankdError):
    """An error that answers a call.

    status: the HTTP status
    field: the wrong field, by the caller's name; None if no field is wrong
    well_formed: whether the body follows its API's description, and only its request is impossible
    retry_after: seconds after which the client may send the call again. The server promises no place then; the time
        keeps clients from calling again at once
    """

    def __init__(
        self, status: int, message: str, field: str | None = None, well_formed: bool = False, retry_after: int = 1
    ) -> None:
        message = _shortened(message)
        field = field and _shortened(field)
        super().__init__(f"{field}: {message}" if field else message)
        self.status = status
        self.field = field
        self.well_formed = well_formed
        self.retry_after = retry_after
        self._message = message

    def anew(self) -> Problem:
        """The same, to be raised: one object that is raised again and again keeps every frame that it came through."""
        return Problem(self.status, self._message, self.field, self.well_formed, self.retry_after)


ENGINE_DEAD = Problem(503, "The engine has failed and the server ends; send the request again.")
ASLEEP = Problem(503, "The model sleeps; send the request again once someone has called /wake_up.", retry_after=10)
SHUTTING_DOWN = Problem(503, "The server is shutting down; send the request again.")


def checked(body: type[Body], fields: Mapping[str, Any], limits: RequestLimits) -> Body:
    """`fields` as a `body`. Raises a 400 `Problem` that names the first bad field and says what it takes."""
    try:
        return body.model_validate(fields, context=Counted(limits))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)[0]
        where = _path(details["loc"])
        if details["type"] == OVER_LIMIT:
            raise Problem(400, _sentence(details["msg"]), where, well_formed=True) from None
        field = body.model_fields.get(where)
        hint = f" `{where}` is {field.description}" if field and field.description else ""
        problem = "is required." if details["type"] == "missing" else _sentence(details["msg"])
        raise Problem(400, problem + hint, where) from None


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").rstrip(".") + "."


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if isinstance(step, str) and step.startswith("<"):
            continue  # a union's tag, see schemas/contents.py
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path or "body"
