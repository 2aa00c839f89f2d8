"""The container of a video file, whether the file holds a video at all, and whether the file is complete.

A demuxer reads a file that was cut off as a shorter video, and a still image in a video container as a video of one
frame. The structure of the file, which is parsed here, tells these cases apart.
Sources: ISO/IEC 14496-12 (boxes and brands), ISO/IEC 23008-12 (HEIF) and the AVIF specification, RFC 8794 and
RFC 9559 (EBML, Matroska), the GIF89a specification, RFC 9649 (WebP).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np

from rerankd.media.decoding import GoOn

Container: TypeAlias = Literal["mov", "matroska", "gif"]
"""Names of libavformat for MP4 and QuickTime, for Matroska and WebM, and for GIF."""

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")
_AVIF_BRANDS = (b"avif", b"avis")
_HEVC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_OTHER_CODEC_BRANDS = (b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"j2is", b"vvic", b"vvis", b"evbi", b"evbs")
_GENERAL_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf")
"""Brands that AVIF files list too, beside their own."""
_HEIF_BRANDS = (*_HEVC_BRANDS, *_OTHER_CODEC_BRANDS, *_GENERAL_BRANDS)
_RAW_BRANDS = (b"crx ",)
_MAX_FTYP = 1024
_14_BITS = (1 << 14) - 1
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


def container_of(data: bytes) -> Container | None:
    """The container of a file, by its first bytes; None for any other file."""
    if data[4:8] in _FIRST_BOXES:
        return "mov"
    if data[:4] == _EBML_HEADER:
        return "matroska"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return None


IsoImage: TypeAlias = Literal["AVIF", "HEIF", "camera raw"]
"""Kinds of images in an ISO container."""


def iso_image(data: bytes, go_on: GoOn) -> IsoImage | None:
    """The kind of image, or sequence of images, in an ISO file, by the brands of its `ftyp` box; None for a video.

    A video may list the brand of an image too. So the first brand decides if the file has tracks.
    """
    if data[4:8] != b"ftyp":
        return None
    box = data[: min(int.from_bytes(data[:4], "big"), _MAX_FTYP)]
    brands = [box[8:12], *(box[at : at + 4] for at in range(16, len(box), 4))]
    if has_tracks(data, go_on) and brands[0] not in _AVIF_BRANDS + _HEIF_BRANDS + _RAW_BRANDS:
        return None
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return "HEIF"
    return "camera raw" if brands[0] in _RAW_BRANDS else None


def has_tracks(data: bytes, go_on: GoOn) -> bool:
    """Whether an ISO file has tracks. A file without tracks holds only still images."""
    return any(kind in (b"moov", b"moof") for kind, _, _ in _boxes(data, 0, len(data), go_on))


def iso_samples(data: bytes, go_on: GoOn) -> int:
    """Number of entries of the list that libavformat makes of an ISO file's samples.

    Each entry takes memory, and a few bytes of a file can declare any number of samples of the same size.
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
    # libavformat lists uncompressed sound by chunks, in pieces of at most 1,024 samples.
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
    """The content of each box at a path of types: the offset of its first byte, and the offset after its last byte."""
    for kind, first, box_end in _boxes(data, at, len(data) if end is None else end, go_on):
        if kind == path[0]:
            content = first + 8, min(box_end, len(data))
            if len(path) == 1:
                yield content
            else:
                yield from _within(data, path[1:], go_on, *content)


def gif_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas of a GIF, in pixels."""
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the canvas of a WebP image, in pixels; None for another file.

    The size is needed before Pillow opens the file, because opening allocates two canvases.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    lossless = data[12:16] == b"VP8L"
    bits = int.from_bytes(data[21:25] if lossless else data[26:30], "little")
    if lossless:
        return 1 + (bits & _14_BITS), 1 + (bits >> 14 & _14_BITS)
    return bits & _14_BITS, bits >> 16 & _14_BITS


def is_cut_short(data: bytes, container: Container, go_on: GoOn) -> bool:
    """Whether a file is shorter than its structure says."""
    if container == "mov":
        return _mov_is_cut(data, go_on)
    return _matroska_is_cut(data) if container == "matroska" else _gif_is_cut(data, go_on)


def _boxes(data: bytes, at: int, end: int, go_on: GoOn) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two offsets: type, offset of the first byte, and offset after the last byte.

    The last box may extend beyond `end`. Bytes that are not a box end the list, because some programs append data to a
    file.
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
    return any(box_end > len(data) for _, _, box_end in _boxes(data, 0, len(data), go_on))


def _matroska_is_cut(data: bytes) -> bool:
    at = len(_EBML_HEADER)
    size, width = _ebml_size(data, at)
    at += width + (size or 0)
    if data[at : at + 4] != _SEGMENT:
        return at + 4 > len(data)
    size, width = _ebml_size(data, at + 4)
    return size is not None and at + 4 + width + size > len(data)


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A size, and the number of bytes that encode it. All bits set is an unknown size (None), as in a live stream."""
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
    # Many programs do not write the trailer, so a file is cut only if it ends within a block.
    return at > len(data)
