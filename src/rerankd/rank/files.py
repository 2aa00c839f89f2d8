"""Files: compressed or not, standard input, numbered lines. An output file is complete or absent."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from rerankd.core import RerankdError

STANDARD = "-"
"""Standard input, or standard output."""
COMPRESSIONS = (".gz", ".zst")
BUFFER = 1 << 20
LINE_BYTES = 256 << 20
"""Bytes of a line at most: a few megabytes of a compressed file may be one line of many gigabytes."""
ZSTD_READ = 1 << 10
"""Bytes that are decompressed at a time: they may become thirty thousand times as many."""


class FileProblem(RerankdError):
    """A file that cannot be read or written as asked."""


class BadLine(FileProblem):
    """A line of a file that is not as its format has it."""

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}")


@dataclass
class BadLines:
    """The treatment of bad lines: the first is an error, or with `skip` each is listed and left out."""

    skip: bool = False
    tell: Callable[[str], object] = lambda text: print(text, file=sys.stderr)
    count: int = field(default=0, init=False)
    _noted: set[str] = field(default_factory=set, init=False)

    def add(self, problem: RerankdError) -> None:
        """Raises `problem` unless bad lines are skipped."""
        if not self.skip:
            raise problem
        self.count += 1
        self.tell(f"left out: {problem}")

    def note(self, text: str) -> None:
        """Tell something that is no error, once."""
        if text not in self._noted:
            self._noted.add(text)
            self.tell(text)


@dataclass
class Source:
    """A file to read. `digest` is of its decompressed bytes, once it was read to its end.

    position, size: bytes read so far, and of the whole file, as it lies there; size is None for standard input
    """

    path: str
    name: str = field(init=False)
    size: int | None = field(default=None, init=False)
    position: int = field(default=0, init=False)
    _sha: Any = field(default_factory=hashlib.sha256, init=False)
    _raw: BinaryIO | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.name = "standard input" if self.path == STANDARD else self.path

    @property
    def format(self) -> str:
        """The suffix below a compression's: `jsonl` of `a.jsonl.gz`; empty for none."""
        return format_of(self.path)

    @property
    def digest(self) -> str:
        return str(self._sha.hexdigest())

    def update(self, data: bytes) -> None:
        """Count data that was read."""
        self._sha.update(data)
        if self._raw is not None:
            # Other threads ask for it, when the file may be closed.
            self.position = self._raw.tell()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines from 1 on, without their ends. Raises FileProblem."""
        for number, line in enumerate(self.whole_lines(), 1):
            yield number, line.rstrip(b"\r\n")

    def whole_lines(self) -> Iterator[bytes]:
        """The lines with their ends. Raises FileProblem."""
        number = 0
        with self.open() as stream:
            try:
                while line := stream.readline(LINE_BYTES + 1):
                    number += 1
                    if len(line) > LINE_BYTES:
                        raise FileProblem(f"{self.name}, line {number}: is longer than {LINE_BYTES:,} bytes.")
                    self.update(line)
                    yield line
            except (OSError, EOFError, zlib.error) as error:
                raise FileProblem(f"{self.name} cannot be read: {error}.") from error
            except Exception as error:
                if type(error).__name__ != "ZstdError":
                    raise
                raise FileProblem(f"{self.name} cannot be read: {error}.") from error

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The decompressed bytes. Raises FileProblem."""
        if self.path == STANDARD:
            yield sys.stdin.buffer
            return
        try:
            raw = open(self.path, "rb", BUFFER)  # noqa: SIM115 - closed below
        except OSError as error:
            raise FileProblem(f"{self.path} cannot be read: {error.strerror}.") from error
        with raw:
            self._raw, self.size = raw, os.fstat(raw.fileno()).st_size
            yield decompressed(raw, self.path)


def format_of(path: str) -> str:
    """The suffix below a compression's, in lower case and without its dot."""
    name = Path(path).name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix.removeprefix(".")


def decompressed(raw: BinaryIO, path: str) -> IO[bytes]:
    """The decompressed content of a file, by its suffix."""
    if path.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Zstd(raw), BUFFER)
    return raw


class _Zstd(io.RawIOBase):
    """The frames of a .zst file, one after the other. The library's own reader takes half a frame for the end."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decompressor = zstandard().ZstdDecompressor()
        self._frame: Any = None
        self._packed = b""
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._data:
            packed = self._packed or self._raw.read(ZSTD_READ)
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._data, self._packed = memoryview(self._frame.decompress(packed)), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(into), len(self._data))
        into[:count], self._data = self._data[:count], self._data[count:]
        return count


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A file to write, compressed as its suffix says; it replaces `path` at the end, and only if nothing failed.

    Raises FileProblem where the folder cannot be written to.
    """
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            raw = open(unfinished, "wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise FileProblem(f"{path} cannot be written: {error.strerror}.") from error
        with raw:
            if path.lower().endswith(".gz"):
                # No time stamp: the same content is the same file.
                with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                    yield cast(IO[bytes], packed)
            elif path.lower().endswith(".zst"):
                with zstandard().ZstdCompressor().stream_writer(raw, closefd=False) as packed:
                    yield packed
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def zstandard() -> Any:
    """The module. Raises FileProblem where it is not installed."""
    return needed("zstandard", ".zst files")


def needed(module: str, what: str, extra: str = "files") -> Any:
    """An optional module. Raises FileProblem, saying what needs it, where it is not installed."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise FileProblem(f"{what} need an extra package: pip install 'rerankd[{extra}]'.") from None
