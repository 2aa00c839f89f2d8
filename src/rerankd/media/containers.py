"""What kind of video file some bytes are, and whether they are all of it.

A demuxer reads a file that was cut off as a shorter video; the file's own structure tells the difference.
Sources: ISO/IEC 14496-12 (boxes), RFC 8794 and RFC 9559 (EBML, Matroska), the GIF89a specification.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Container: TypeAlias = Literal["mov", "matroska", "gif"]
"""libavformat's names: MP4 and QuickTime, Matroska and WebM, GIF."""

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


def container_of(data: bytes) -> Container | None:
    """The container by its first bytes; None for anything that is not one of the three."""
    if data[4:8] in _FIRST_BOXES:
        return "mov"
    if data[:4] == _EBML_HEADER:
        return "matroska"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return None


def is_cut_short(data: bytes, container: Container) -> bool:
    """Whether the file ends before it says that it does."""
    return {"mov": _mov_is_cut, "matroska": _matroska_is_cut, "gif": _gif_is_cut}[container](data)


def _mov_is_cut(data: bytes) -> bool:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:  # to the end of the file
            return False
        if size < 8:  # not a box: something was appended to the file
            return False
        at += size
    return at > len(data)


def _matroska_is_cut(data: bytes) -> bool:
    at = len(_EBML_HEADER)
    size, width = _ebml_size(data, at)
    at += width + (size or 0)
    if data[at : at + 4] != _SEGMENT:
        return at + 4 > len(data)
    size, width = _ebml_size(data, at + 4)
    return size is not None and at + 4 + width + size > len(data)


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """(size, bytes that it takes); a size of all ones means unknown, as in a live stream."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


def _gif_is_cut(data: bytes) -> bool:
    def after_colours(at: int, flags: int) -> int:
        return at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)

    def after_blocks(at: int) -> int:
        while at < len(data) and data[at]:
            at += data[at] + 1
        return at + 1

    if len(data) < 13:
        return True
    at = after_colours(13, data[10])
    while at < len(data):
        if data[at] == 0x21:
            at = after_blocks(at + 2)
        elif data[at] == 0x2C and at + 10 <= len(data):
            at = after_blocks(after_colours(at + 10, data[at + 9]) + 1)
        else:
            return data[at] == 0x2C
    # Many writers leave the trailer out; only an end within a block is a cut.
    return at > len(data)
