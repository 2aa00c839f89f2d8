"""From a request's bytes to JSON, within limits."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any, NoReturn

from rerankd import work
from rerankd.limits import RequestLimits
from rerankd.server.incoming import Incoming
from rerankd.server.problems import Problem

LARGE = 32 << 10
"""A body of at least this many bytes is parsed in a thread: a smaller one takes the event loop a few milliseconds at
most."""
VALUES_BETWEEN_CHECKS = 4096


class Bodies:
    """Limits on the bodies of calls that are being read or answered: on each body, and on all of them."""

    def __init__(self, each: int, together: int, seconds: float) -> None:
        """each, together: bytes; seconds: how long a body may take to arrive"""
        self._each = each
        self._together = max(each, together)
        self._seconds = seconds
        self._held = 0

    @asynccontextmanager
    async def read(self, incoming: Incoming) -> AsyncIterator[bytearray]:
        """A call's body, which counts as held until the context ends.

        Raises `Problem`: 413 for a body above the limit, 415 for a content type that is not JSON or a body that is
        compressed, 408 for one that does not arrive in time, 429 where all bodies together are too large.
        """
        media_type = incoming.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            got = f"{media_type!r}" if media_type else "none"
            raise Problem(415, f"The Content-Type must be application/json; this request's is {got}.")
        coding = incoming.headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise Problem(
                415, f"The body is compressed ({coding!r:.50}); send it as it is, without a Content-Encoding."
            )
        body = bytearray()
        try:
            await asyncio.wait_for(self._fill(body, incoming), self._seconds)
            yield body
        except asyncio.TimeoutError:
            raise Problem(
                408,
                f"The body did not arrive within {self._seconds:g} seconds; send it faster, or start the server with "
                "a larger --body-timeout.",
            ) from None
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, incoming: Incoming) -> None:
        too_large = Problem(
            413,
            f"The body is larger than the {self._each} bytes that this server takes; "
            "send fewer documents at a time, or start it with a larger --max-body-mb.",
        )
        announced = incoming.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._each:
            raise too_large
        async for chunk in incoming.chunks():
            if self._held + len(chunk) > self._together:
                raise Problem(
                    429,
                    f"The bodies of all calls together are larger than the {self._together} bytes that this server "
                    "holds; send this one again later, or start it with a larger --max-bodies-mb.",
                )
            body += chunk
            self._held += len(chunk)
            if len(body) > self._each:
                raise too_large


def parse_json(body: bytes | bytearray, limits: RequestLimits) -> dict[str, Any]:
    """The JSON object that a body holds, lone surrogates in its strings replaced by U+FFFD.

    Raises a 400 `Problem` for bytes that are not a JSON object in UTF-8, for numbers that are not finite, and for
    more values than the limit.
    """
    try:
        decoder = _decoder() if len(body) <= LARGE else _Gradual(limits)
        sent = decoder.decode(body.decode("utf-8-sig"))
        if re.search(rb"\\u[dD]", body):
            sent = _well_formed(sent)
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not UTF-8: byte {error.start} does not decode.") from None
    except RecursionError:
        raise Problem(400, "The body's JSON is nested too deeply.") from None
    except ValueError as error:
        raise Problem(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(sent, dict):
        raise Problem(400, "The body must be a JSON object.")
    return sent


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


class _Gradual(json.JSONDecoder):
    """Decodes in Python, value by value, no more than a limit of them.

    The library's C code would hold up every other thread, the event loop's too, from a body's first byte to its last.
    """

    def __init__(self, limits: RequestLimits) -> None:
        super().__init__(parse_float=_finite, parse_constant=_refuse)
        self._limits = limits
        self._values = 0
        self.parse_array = lambda at, scan: JSONArray(at, self._counting(scan))
        self.parse_object = lambda at, strict, scan, *hooks: JSONObject(at, strict, self._counting(scan), *hooks)
        self.scan_once = py_make_scanner(self)

    def _counting(self, scan: Callable[[str, int], tuple[Any, int]]) -> Callable[[str, int], tuple[Any, int]]:
        def counted(text: str, place: int) -> tuple[Any, int]:
            self._values += 1
            if self._values > self._limits.values:
                raise Problem(400, f"The body holds {self._limits.exceeded('values')}.", well_formed=True)
            if self._values % VALUES_BETWEEN_CHECKS == 0:
                work.check()
            return scan(text, place)

        return counted


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number[:20]} is not a finite number")


def _well_formed(value: Any) -> Any:
    """JSON may escape half of a surrogate pair; no tokenizer and no UTF-8 encoder takes such a string."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_well_formed(one) for one in value]
    if isinstance(value, dict):
        return {_well_formed(name): _well_formed(one) for name, one in value.items()}
    return value


def encode_json(content: object, large: bool = False) -> bytes:
    """JSON as it goes over the wire. Raises ValueError for numbers that are not finite.

    large: to encode it in Python, piece by piece, as `_Gradual` decodes
    """
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ("".join(encoder.iterencode(content)) if large else encoder.encode(content)).encode()
