"""From the bytes of a message to the message, within limits.

Encoding: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from rerankd.limits import RequestLimits
from rerankd.server.body import LARGE
from rerankd.server.tei_grpc.calls import Refused

OTHER_FIELDS = 32
"""More than a message has beside its texts."""
VARINT, FIXED_64, BYTES, START, END, FIXED_32 = range(6)


def parsed(kind: Any, raw: bytes, limits: RequestLimits) -> Any:
    """The message of a class. Raises Refused for bytes that are none, and for more texts or ids than the limits."""
    if len(raw) > LARGE and has_more_fields(raw, limits.documents + OTHER_FIELDS):
        raise Refused(413, f"The message holds {limits.exceeded('documents')}.")
    try:
        message = kind.FromString(raw)
    except DecodeError:
        raise Refused(400, f"The message is no {kind.DESCRIPTOR.full_name}.") from None
    if len(getattr(message, "ids", ())) > limits.values:
        raise Refused(413, f"ids: holds {limits.exceeded('values')}.")
    return message


def has_more_fields(raw: bytes, most: int) -> bool:
    """Whether a message has more than `most` fields, without making it: an empty text has 2 bytes here, and takes many
    more in memory. Bytes that are no message have few.
    """
    at = 0
    for _ in range(most + 1):
        if at >= len(raw):
            return False
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _varint(raw, at)
        elif kind == BYTES:
            size, at = _varint(raw, at)
            at += size
        elif kind in (FIXED_64, FIXED_32):
            at += 8 if kind == FIXED_64 else 4
        elif kind not in (START, END):
            return False
    return True


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while at < len(raw):
        number |= (raw[at] & 0x7F) << shift
        at += 1
        shift += 7
        if raw[at - 1] < 0x80:
            break
    return number, at
