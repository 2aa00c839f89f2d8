"""Small files that are large once they are decoded, and large ones that are small."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

from tests.media.films import MP4, film

SIDE = 8900
"""Of a PNG: 317 MB of red, green, blue and alpha, within the limit on pixels."""


def large_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packing = zlib.compressobj(1)
    rows = b"".join(packing.compress(bytes(1 + 4 * SIDE)) for _ in range(SIDE)) + packing.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 6, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def long_gif(side: int) -> bytes:
    """460 KB: 20,000 frames of one pixel each, on a canvas of side x side that a decoder copies for each."""
    head = b"GIF89a" + side.to_bytes(2, "little") * 2 + b"\x80\0\0" + bytes(6)
    frame = b"\x21\xf9\4\0\1\0\0\0" + b"\x2c" + bytes(4) + b"\1\0\1\0\0" + b"\2\2\x44\1\0"
    return head + frame * 20_000 + b";"


def write_padded_film(path: Path, size: int) -> None:
    """A short film, and `size` bytes of nothing behind it, which take no space on disk."""
    data = film(MP4)
    with path.open("wb") as file:
        file.write(data + size.to_bytes(4, "big") + b"free")
        file.truncate(len(data) + size)


def resident(process: int | str, peak: bool = False) -> int:
    """Bytes of memory that a process has, or had at most, as Linux says."""
    return _told(process, "VmHWM:" if peak else "VmRSS:")


def limit_memory(process: int, more: int) -> int:
    """Let a process take so many bytes more than it has taken now; its new limit (`RLIMIT_DATA`)."""
    limit = _told(process, "VmData:") + more
    resource.prlimit(process, resource.RLIMIT_DATA, (limit, limit))
    return limit


def _told(process: int | str, name: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
