"""From a request's bytes to JSON, within limits."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from json.decoder import JSONArray, JSONObject, scanstring  # type: ignore[attr-defined]
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
SLICE = 1 << 18
"""Bytes or characters that C code reads at a time: no other thread runs meanwhile."""
PATIENCE = 5.0
"""Seconds that a body may take to arrive while the bytes of another one have no place."""
MOST_NAME = 200
"""The most bytes of a field's name, where an error looks for it, and of the blanks behind it."""
LONGEST_ESCAPE = len("\\ud83d")
NESTED = Problem(400, "The body's JSON is nested too deeply.")
_FIRST_HALF = re.compile(r"\\u[dD][89abAB]")


class Bodies:
    """Limits on the bodies of calls that are being read or answered: on each body, and on all of them."""

    def __init__(self, each: int, together: int, seconds: float) -> None:
        """each, together: bytes; seconds: how long a body may take to arrive"""
        self._each = each
        self._together = max(each, together)
        self._seconds = seconds
        self._held = 0
        self._arriving: dict[asyncio.Task[None], tuple[float, bytearray]] = {}

    @asynccontextmanager
    async def read(self, incoming: Incoming, binary_header: str | None = None) -> AsyncIterator[bytearray]:
        """A call's body, which counts as held until the context ends.

        binary_header: as `Endpoint` has it

        Raises `Problem`: 413 for a body above the limit, 415 for a content type that is not JSON or a body that is
        compressed, 408 for one that does not arrive in time, 429 where all bodies together are too large: for a
        new body, or for one that arrives slowly.
        """
        _check_type(incoming.headers, binary_header)
        coding = incoming.headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise Problem(
                415, f"The body is compressed ({coding!r:.50}); send it as it is, without a Content-Encoding."
            )
        body = bytearray()
        arriving = asyncio.ensure_future(self._fill(body, incoming))
        self._arriving[arriving] = time.monotonic(), body
        try:
            await asyncio.wait((arriving,), timeout=self._seconds)
            if not arriving.done():
                raise Problem(
                    408,
                    f"The body did not arrive within {self._seconds:g} seconds; send it faster, or start the server "
                    "with a larger --body-timeout.",
                )
            if arriving.cancelled():
                raise self._full("This body arrived too slowly to keep its place. ")
            arriving.result()
            del self._arriving[arriving]
            yield body
        finally:
            self._arriving.pop(arriving, None)
            arriving.cancel()
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
            if not self._has_room(len(chunk)):
                raise self._full()
            body += chunk
            self._held += len(chunk)
            if len(body) > self._each:
                raise too_large

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit, after slow bodies have given up their places, the oldest first.

        Otherwise a client that stalls in the middle of its bodies would keep all others out for as long as a body may
        take.
        """
        own = asyncio.current_task()
        while self._held + size > self._together:
            slow = next((task for task in self._arriving if not task.done()), own)
            if slow is None or slow is own or time.monotonic() - self._arriving[slow][0] < PATIENCE:
                return False
            _, body = self._arriving.pop(slow)
            slow.cancel()
            self._held -= len(body)
            body.clear()
        return True

    def _full(self, why: str = "") -> Problem:
        return Problem(
            429,
            f"{why}The bodies of all calls together are larger than the {self._together} bytes that this server holds; "
            "send this one again later, or start it with a larger --max-bodies-mb.",
        )


def _check_type(headers: Mapping[str, str], binary_header: str | None) -> None:
    """Raise a 415 `Problem` for a body that is not called JSON. Without a type, it is JSON, as Go's clients send it.

    A web page may send bodies of some types, and of none, to any server that its reader's browser reaches. The browser
    says then where the body comes from, which no other client does. For JSON, and for binary data, it asks first.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return
    if media_type == "application/octet-stream" and binary_header and binary_header in headers:
        return
    if media_type:
        raise Problem(415, f"The Content-Type must be application/json; this request's is {media_type!r}.")
    if any(name == "origin" or name.startswith("sec-fetch-") for name in headers):
        raise Problem(
            415, "The Content-Type must be application/json; this request has none, and comes from a browser."
        )


def parse_json(body: bytes | bytearray, limits: RequestLimits) -> dict[str, Any]:
    """The JSON object that a body holds, lone surrogates in its strings replaced by U+FFFD.

    Raises a 400 `Problem` for bytes that are not a JSON object in UTF-8, for numbers that are not finite, and for
    more values than the limit.
    """
    try:
        decoder = _decoder() if len(body) <= LARGE else _Gradual(limits)
        parsed = decoder.decode(_text(body))
        if _has_surrogates(body):
            parsed = _well_formed(parsed)
    except _TooLong as error:
        field = _name_of(error.number, body)
        what = f"an integer of {len(error.number)} characters ({error.number[:20]}...); write it with fewer"
        raise Problem(400, f"is {what}." if field else f"The body holds {what}.", field) from None
    except UnicodeDecodeError as error:
        raise Problem(400, f"The body is not UTF-8: byte {error.start} does not decode.") from None
    except RecursionError:
        raise NESTED.anew() from None
    except ValueError as error:
        raise Problem(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise Problem(400, "The body must be a JSON object.")
    return parsed


def _text(body: bytes | bytearray) -> str:
    """Raises UnicodeDecodeError, with the place in the body."""
    decoder, pieces = getincrementaldecoder("utf-8-sig")(), []
    for start in range(0, len(body), SLICE):
        pending = len(decoder.getstate()[0])
        try:
            pieces.append(decoder.decode(body[start : start + SLICE], start + SLICE >= len(body)))
        except UnicodeDecodeError as error:
            error.start += start - pending
            raise
    return "".join(pieces)


def _has_surrogates(body: bytes | bytearray) -> bool:
    """Whether an escape may stand for half of a surrogate pair."""
    slices = (body[start : start + SLICE + 2] for start in range(0, len(body), SLICE))
    return any(re.search(rb"\\u[dD]", piece) for piece in slices)


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=_refuse)


class _Gradual(json.JSONDecoder):
    """Decodes in Python, value by value, no more than a limit of them.

    The library's C code would hold up every other thread, the event loop's too, from a body's first byte to its last.
    """

    def __init__(self, limits: RequestLimits) -> None:
        super().__init__(parse_int=_integer, parse_float=_finite, parse_constant=_refuse)
        self._limits = limits
        self._values = 0
        self.parse_array = lambda at, scan: JSONArray(at, self._counting(scan))
        self.parse_object = lambda at, strict, scan, *hooks: JSONObject(at, strict, self._counting(scan), *hooks)
        self.parse_string = _string
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


def _string(text: str, start: int, strict: bool) -> tuple[str, int]:
    """`scanstring`: the string whose first quote is before `start`, and the place behind its last; slice by slice."""
    quote = start - 1
    while (quote := text.find('"', quote + 1, start + SLICE)) >= 0:
        if text[quote - 1] != "\\":
            break
    pieces: list[str] = []
    while quote < 0 and (stop := _slice_end(text, start)) < len(text):
        work.check()
        try:
            piece, end = scanstring(f'{text[start:stop]}"', 0, strict)
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
        pieces.append(piece)
        if start + end <= stop:  # its last quote, and not the one that was added
            return "".join(pieces), start + end
        start = stop
    piece, end = scanstring(text, start, strict)
    return "".join((*pieces, piece)), end


def _slice_end(text: str, start: int) -> int:
    """The end of a slice of a string from `start` on. It parts no escape, and no two that stand for one character."""
    stop = start + SLICE
    if stop >= len(text):
        return len(text)
    place = text.rfind("\\", stop - 2 * LONGEST_ESCAPE, stop)
    if place < 0 or not _begins_escape(text, start, place):
        return stop
    before = place - LONGEST_ESCAPE
    is_half = before > start and _FIRST_HALF.match(text, before) and _begins_escape(text, start, before)
    return before if is_half else place


def _begins_escape(text: str, start: int, place: int) -> bool:
    """Whether the backslash at a place is not the second of two."""
    before = text[start:place]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 0


class _TooLong(Exception):
    """An integer of more digits than Python reads."""

    def __init__(self, number: str) -> None:
        super().__init__(number)
        self.number = number


def _integer(number: str) -> int:
    try:
        return int(number)
    except ValueError:
        raise _TooLong(number) from None


def _name_of(number: str, body: bytes | bytearray) -> str | None:
    """The field that has a number; None for one in a list."""
    place = body.find(number.encode())
    name = re.search(rb'"([^"\\]*)"\s*:\s*$', body[max(place - MOST_NAME, 0) : place])
    return name[1].decode(errors="replace") if name else None


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
        return [_well_formed(item) for item in value]
    if isinstance(value, dict):
        return {_well_formed(name): _well_formed(item) for name, item in value.items()}
    return value


def encode_json(content: object, large: bool = False) -> bytes:
    """JSON as it goes over the wire. Raises ValueError for numbers that are not finite.

    large: whether to encode in Python, piece by piece, as `_Gradual` decodes
    """
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not large:
        return encoder.encode(content).encode()
    encoded, pieces = bytearray(), encoder.iterencode(content)
    while batch := list(islice(pieces, VALUES_BETWEEN_CHECKS)):
        encoded += "".join(batch).encode()
    return bytes(encoded)
