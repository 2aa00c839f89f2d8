"""The kind of a video file, whether it holds a film at all, and whether it is complete.

A demuxer reads a file that was cut off as a shorter video, and a still picture in a film's container as a film
of one frame; the file's own structure tells the difference.
Sources: ISO/IEC 14496-12 (boxes and brands), ISO/IEC 23008-12 (HEIF) and the AVIF specification, RFC 8794 and
RFC 9559 (EBML, Matroska), the GIF89a specification, RFC 9649 (WebP).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np

from rerankd.media.decoding import GoOn

Container: TypeAlias = Literal["mov", "matroska", "gif"]
"""libavformat's names: MP4 and QuickTime, Matroska and WebM, GIF."""

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")
_AVIF_BRANDS = (b"avif", b"avis")
_HEVC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_OTHER_CODEC_BRANDS = (b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"j2is", b"vvic", b"vvis", b"evbi", b"evbs")
_GENERAL_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf")
"""A brand that AVIF files name too, beside their own."""
_HEIF_BRANDS = (*_HEVC_BRANDS, *_OTHER_CODEC_BRANDS, *_GENERAL_BRANDS)
_RAW_BRANDS = (b"crx ",)
_MAX_FTYP = 1024
_14_BITS = (1 << 14) - 1
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


IsoPicture: TypeAlias = Literal["AVIF", "HEIF", "camera raw"]
"""Brands of ISO containers that are made for pictures."""


def iso_picture(data: bytes, go_on: GoOn) -> IsoPicture | None:
    """What kind of picture, or sequence of pictures, an ISO file holds by the brands of its `ftyp` box; None for films.

    A film may name a picture's brand beside its own: the first brand decides where the file has tracks.
    `go_on` is asked again and again meanwhile.
    """
    if data[4:8] != b"ftyp":
        return None
    box = data[: min(int.from_bytes(data[:4], "big"), _MAX_FTYP)]
    brands = [box[8:12], *(box[at : at + 4] for at in range(16, len(box), 4))]
    if has_film(data, go_on) and brands[0] not in _AVIF_BRANDS + _HEIF_BRANDS + _RAW_BRANDS:
        return None
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return "HEIF"
    return "camera raw" if brands[0] in _RAW_BRANDS else None


def has_film(data: bytes, go_on: GoOn) -> bool:
    """Whether an ISO file has tracks; one without holds pictures alone. `go_on` is asked again and again meanwhile."""
    return any(kind in (b"moov", b"moof") for kind, _, _ in _boxes(data, 0, len(data), go_on))


def iso_samples(data: bytes, go_on: GoOn) -> int:
    """Entries of the list that libavformat makes of an ISO file's samples.

    A few bytes can claim any number of samples that all have one size, and each entry takes memory.
    """
    tracks = _within(data, (b"moov", b"trak"), go_on)
    runs = _within(data, (b"moof", b"traf", b"trun"), go_on)
    return sum(_track_samples(data, *track, go_on) for track in tracks) + sum(_number(data, at + 4) for at, _ in runs)


def _track_samples(data: bytes, at: int, end: int, go_on: GoOn) -> int:
    def tables(*path: bytes) -> list[tuple[int, int]]:
        return list(_within(data, path, go_on, at, end))

    stbl = (b"mdia", b"minf", b"stbl")
    handlers = {data[body + 8 : body + 12] for body, _ in tables(b"mdia", b"hdlr")}
    durations = [(_number(data, body + 4), _number(data, body + 12)) for body, _ in tables(*stbl, b"stts")]
    if b"vide" in handlers or b"soun" not in handlers or any(entry != (1, 1) for entry in durations):
        sizes = tables(*stbl, b"stsz") + tables(*stbl, b"stz2")
        return sum(_number(data, body + 8) for body, _ in sizes)
    # Sound without compression is listed by chunks, in pieces of at most 1,024 samples.
    chunks = sum(_number(data, body + 4) for kind in (b"stco", b"co64") for body, _ in tables(*stbl, kind))
    spans = [
        np.frombuffer(data, ">u4", max(0, stop - body - 8) // 4, body + 8) for body, stop in tables(*stbl, b"stsc")
    ]
    return chunks * (1 + max((int(span[1::3].max(initial=0)) for span in spans), default=0) // 1024)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _within(
    data: bytes, path: Sequence[bytes], go_on: GoOn, at: int = 0, end: int | None = None
) -> Iterator[tuple[int, int]]:
    """First byte of the content, and the byte behind it, of each box that a path of types leads to."""
    for kind, first, behind in _boxes(data, at, len(data) if end is None else end, go_on):
        if kind == path[0]:
            inside = first + 8, min(behind, len(data))
            if len(path) == 1:
                yield inside
            else:
                yield from _within(data, path[1:], go_on, *inside)


def gif_size(data: bytes) -> tuple[int, int]:
    """Width and height of a GIF's canvas."""
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP's canvas; None for another file.

    Pillow has two canvases made as soon as it opens one.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    lossless = data[12:16] == b"VP8L"
    both = int.from_bytes(data[21:25] if lossless else data[26:30], "little")
    if lossless:
        return 1 + (both & _14_BITS), 1 + (both >> 14 & _14_BITS)
    return both & _14_BITS, both >> 16 & _14_BITS


def is_cut_short(data: bytes, container: Container, go_on: GoOn) -> bool:
    """Whether the file ends before it says that it does. `go_on` is asked again and again meanwhile."""
    if container == "mov":
        return _mov_is_cut(data, go_on)
    return _matroska_is_cut(data) if container == "matroska" else _gif_is_cut(data, go_on)


def _boxes(data: bytes, at: int, end: int, go_on: GoOn) -> Iterator[tuple[bytes, int, int]]:
    """The boxes from `at` on: type, first byte, and the byte behind the box, which may lie behind `end`.

    Bytes that are no box end the list: they were appended to the file.
    """
    while at + 8 <= end:
        go_on()
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:  # to the end of the file
            size = end - at
        if size < 8:
            return
        yield data[at + 4 : at + 8], at, at + size
        at += size


def _mov_is_cut(data: bytes, go_on: GoOn) -> bool:
    return any(behind > len(data) for _, _, behind in _boxes(data, 0, len(data), go_on))


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


def _gif_is_cut(data: bytes, go_on: GoOn) -> bool:
    def after_colours(at: int, flags: int) -> int:
        return at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)

    def after_blocks(at: int) -> int:
        while at < len(data) and data[at]:
            go_on()
            at += data[at] + 1
        return at + 1

    if len(data) < 13:
        return True
    at = after_colours(13, data[10])
    while at < len(data):
        go_on()
        if data[at] == 0x21:
            at = after_blocks(at + 2)
        elif data[at] == 0x2C and at + 10 <= len(data):
            at = after_blocks(after_colours(at + 10, data[at + 9]) + 1)
        else:
            return data[at] == 0x2C
    # Many writers leave the trailer out; only an end within a block is a cut.
    return at > len(data)
