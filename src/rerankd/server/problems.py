"""The errors of a call, before a dialect gives them its own shape."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rerankd.core import RerankdError
from rerankd.limits import RequestLimits
from rerankd.schemas.lists import OVER_LIMIT, Counted
from rerankd.schemas.wording import path_of, problem_of

Body = TypeVar("Body", bound=BaseModel)
MOST_CHARACTERS = 1000
"""The most characters of an error's message, and of the field in it: both may repeat text of a body."""
MOST_NAMED = 3
"""The most unknown fields that an error names, the nearest to the missing field first."""
MOST_COMPARED = 100
"""The most unknown fields of which the nearest are chosen: a body may have a million. Also characters of a name."""


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
        details = error.errors(include_url=False)[0]
        location, problem = details["loc"], problem_of(details)
        is_missing = details["type"] == "missing"
        if is_missing and location[-2:] == ("<message>", "content"):
            location, problem = location[:-2], "must have `content`"
            if location[0] in ("query", "documents"):
                problem += ", or as in Jina's API (/jina) `text` or `image`"
        where = path_of(location) or "body"
        field = body.model_fields.get(where)
        is_over_limit = details["type"] == OVER_LIMIT
        # The description may be a noun, a clause or a sentence: no verb fits before all of them.
        if field and field.description and not is_over_limit:
            problem += f" ({field.description.rstrip('.')})"
        if is_missing and field:
            problem += _unknown(body, where, fields)
        raise Problem(400, f"{problem}.", where, well_formed=is_over_limit) from None


def _unknown(body: type[BaseModel], missing: str, given: Mapping[str, Any]) -> str:
    """A clause that names the unknown fields of a body, since one may be the missing field with another spelling."""
    names = list(islice((name for name in given if name not in body.model_fields), MOST_COMPARED))
    names.sort(key=lambda name: SequenceMatcher(None, name[:MOST_COMPARED], missing).ratio(), reverse=True)
    listed = ", ".join(f"`{name:.50}`" for name in names[:MOST_NAMED])
    return f"; unknown in the body: {listed}" if names else ""
