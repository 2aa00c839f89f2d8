"""From a request's bytes to JSON, within a limit."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from rerankd.server.problems import Problem


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object in a request's body, lone surrogates in its strings replaced by U+FFFD.

    limit: the most bytes that are read

    Raises `Problem`: 413 for a body above the limit, 415 for a content type that is not JSON, 400 for bytes
    that are not a JSON object in UTF-8.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        got = f"{media_type!r}" if media_type else "none"
        raise Problem(415, f"The Content-Type must be application/json; this request's is {got}.")
    return _parse(await _read(request, limit))


async def _read(request: Request, limit: int) -> bytes:
    too_large = Problem(
        413,
        f"The body is larger than the {limit} bytes that this server takes; "
        "send fewer documents at a time, or start it with a larger --max-body-mb.",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        sent = _loads(body)
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not UTF-8: byte {error.start} does not decode.") from None
    except RecursionError:
        raise Problem(400, "The body's JSON is nested too deeply.") from None
    except ValueError as error:
        raise Problem(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(sent, dict):
        raise Problem(400, "The body must be a JSON object.")
    return sent


def _loads(body: bytes) -> Any:
    sent = json.loads(body.decode("utf-8-sig"))
    if b"\\ud" not in body.lower():
        return sent
    # JSON may escape half of a surrogate pair; no tokenizer and no UTF-8 encoder takes such a string.
    text = json.dumps(sent, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
