"""Answers as plain data: a status, headers and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from rerankd.server.body import encode_json
from rerankd.server.dialects.base import Dialect
from rerankd.server.problems import Problem


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on its way out. `media_type` is None for an empty one."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str | None = None


def json_reply(content: object, status: int, headers: dict[str, str] | None = None, large: bool = False) -> Reply:
    """JSON as it goes over the wire; nothing at all for None. `large` as `encode_json` has it."""
    if content is None:
        return Reply(status, headers=headers or {})
    return Reply(status, encode_json(content, large), headers or {}, "application/json")


def refusal(dialect: Dialect, problem: Problem) -> Reply:
    """A problem in a dialect's shape."""
    headers = {}
    if problem.status in (429, 503):
        headers["Retry-After"] = str(problem.retry_after)
    if problem.status in (408, 503):
        headers["Connection"] = "close"
    return json_reply(dialect.render_error(problem), dialect.status(problem), headers)
