"""The binary tensor extension of the Open Inference Protocol, for inputs: texts behind the body's JSON.

Source: `docs/protocol/extension_binary_data.md` of triton-inference-server/server. A body begins with JSON, whose
length a header gives. An input with `binary_data_size` has no `data`: its elements follow the JSON, in the order of the
inputs, each as its length in four bytes (little-endian) and its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerankd import work
from rerankd.limits import RequestLimits
from rerankd.server.body import VALUES_BETWEEN_CHECKS, parse_json
from rerankd.server.problems import Problem

HEADER = "inference-header-content-length"
SIZE = "binary_data_size"
LENGTH_BYTES = 4
MOST_DIGITS = 12
"""More than any body's length has. Python refuses to read a number of thousands of digits."""


def unpack(body: bytes | bytearray, headers: Mapping[str, str], limits: RequestLimits) -> dict[str, Any]:
    """The fields of a body, with the texts of binary inputs as their `data`.

    Raises a 400 `Problem`, which names the input, for binary data that are no texts or do not fill the body.
    """
    place = _json_length(headers.get(HEADER), len(body))
    fields = parse_json(body[:place] if place < len(body) else body, limits)
    inputs, count = fields.get("inputs"), 0
    for number, tensor in enumerate(inputs if isinstance(inputs, list) else ()):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        if not isinstance(parameters, dict) or parameters.get(SIZE) is None:
            continue
        where = f"inputs[{number}]"
        size = parameters.pop(SIZE)
        if not parameters:
            del tensor["parameters"]
        _check(tensor, size, len(body) - place, where)
        tensor["data"] = _texts(memoryview(body)[place : place + size], where, limits, count)
        count += len(tensor["data"])
        place += size
    if place < len(body):
        raise Problem(
            400,
            f"The body has {len(body) - place} bytes behind its JSON and the data of its inputs; the `{SIZE}` of the "
            "inputs must add up to all bytes behind the JSON.",
        )
    return fields


def _json_length(header: str | None, body_length: int) -> int:
    """The length of the JSON by the header; without a header, the body is JSON alone."""
    if header is None:
        return body_length
    is_number = header.isascii() and header.isdecimal() and len(header) <= MOST_DIGITS
    if not is_number or int(header) > body_length:
        raise Problem(
            400,
            f"The header Inference-Header-Content-Length is {header!r:.50}; it must be the length in bytes of the JSON "
            f"at the beginning of the body, which has {body_length} bytes.",
        )
    return int(header)


def _check(tensor: Mapping[str, Any], size: object, remaining: int, where: str) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Problem(400, "must be a number of bytes.", f"{where}.parameters.{SIZE}")
    if tensor.get("datatype") != "BYTES":
        raise Problem(400, "must be BYTES: texts, in UTF-8.", f"{where}.datatype")
    if tensor.get("data") is not None:
        raise Problem(400, f"is given beside `parameters.{SIZE}`; send the texts in one way.", f"{where}.data")
    if size > remaining:
        raise Problem(
            400,
            f"is {size}, and {remaining} bytes are left of the body. The data follow the body's JSON, whose length the "
            "header Inference-Header-Content-Length gives.",
            f"{where}.parameters.{SIZE}",
        )


def _texts(data: memoryview, where: str, limits: RequestLimits, before: int) -> list[str]:
    """The elements of a BYTES tensor. before: the number of elements of the inputs before it"""
    texts: list[str] = []
    # One of all texts is the query.
    most = None if limits.documents is None else max(limits.documents + 1 - before, 0)
    place = 0
    while place < len(data):
        if len(texts) == most:
            raise Problem(400, f"holds {limits.exceeded('documents')}.", f"{where}.data", well_formed=True)
        if len(texts) % VALUES_BETWEEN_CHECKS == 0:
            work.check()
        element = f"{where}.data[{len(texts)}]"
        start = place + LENGTH_BYTES
        # Where fewer than four bytes are left, they are no length.
        place = start + int.from_bytes(data[place:start], "little")
        if place > len(data):
            raise Problem(
                400,
                f"goes beyond the {len(data)} bytes of its tensor; an element is its length in four bytes "
                "(little-endian) and its bytes in UTF-8.",
                element,
            )
        try:
            texts.append(str(data[start:place], "utf-8"))
        except UnicodeDecodeError as error:
            raise Problem(400, f"is not UTF-8: byte {error.start} does not decode.", element) from None
    return texts
