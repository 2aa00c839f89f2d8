"""Reading and writing files, compressed or not, and standard input. An output file is either complete or absent."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from rerankd.core import RerankdError

STANDARD = "-"
"""The path that means standard input or standard output."""
COMPRESSIONS = (".gz", ".zst")
MARK = b"\xef\xbb\xbf"
"""The byte-order mark, which some editors and spreadsheets write at the start of a UTF-8 file."""
BUFFER = 1 << 20
LINE_BYTES = 256 << 20
"""Longest line, in bytes. A compressed file of a few megabytes may hold one line of many gigabytes."""
ZSTD_READ = 1 << 10
"""Compressed bytes per step. They may expand to thirty thousand times their size."""


class FileProblem(RerankdError):
    """A file cannot be read or written."""


class BadLine(FileProblem):
    """A line of a file breaks the rules of the file's format."""

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}, line {line}: {problem}")


@dataclass
class BadLines:
    """What happens to a bad line: an error ends the run, or with `skip` the line is reported and left out.

    tell: prints one message to the user
    count: number of lines left out
    """

    skip: bool = False
    tell: Callable[[str], object] = lambda text: print(text, file=sys.stderr)
    count: int = field(default=0, init=False)
    _noted: set[str] = field(default_factory=set, init=False)

    def add(self, problem: RerankdError) -> None:
        """Count and report a bad line. Raises `problem` unless bad lines are skipped."""
        if not self.skip:
            raise problem
        self.count += 1
        self.tell(f"left out: {problem}")

    def note(self, text: str) -> None:
        """Tell the user something that is not an error, but each text only once."""
        if text not in self._noted:
            self._noted.add(text)
            self.tell(text)


@dataclass
class Source:
    """A file to read, or standard input.

    name: the name for messages
    size: size of the file on disk in bytes; None before the file is open, and for standard input
    position: bytes of the file on disk that were read so far
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
        """The suffix that names the format, without that of the compression: `jsonl` for `a.jsonl.gz`; may be empty."""
        return format_of(self.path)

    @property
    def digest(self) -> str:
        """The SHA-256 of the decompressed bytes that were read so far, in hexadecimal."""
        return str(self._sha.hexdigest())

    def update(self, data: bytes) -> None:
        """Note that `data` was read, for `digest` and `position`."""
        self._sha.update(data)
        if self._raw is not None:
            # A progress bar in another thread reads the position, and the file may be closed by then.
            self.position = self._raw.tell()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines without their line ends, each with its number from 1. Raises FileProblem."""
        for number, line in enumerate(self.whole_lines(), 1):
            yield number, line.rstrip(b"\r\n")

    def whole_lines(self) -> Iterator[bytes]:
        """The lines with their line ends, without a byte-order mark before the first. Raises FileProblem."""
        number = 0
        with self.open() as stream:
            try:
                while line := stream.readline(LINE_BYTES + 1):
                    number += 1
                    if len(line) > LINE_BYTES:
                        raise FileProblem(f"{self.name}, line {number}: is longer than {LINE_BYTES:,} bytes.")
                    self.update(line)
                    yield line.removeprefix(MARK) if number == 1 else line
            except (OSError, EOFError, zlib.error) as error:
                raise FileProblem(f"{self.name} cannot be read: {error}.") from error
            except Exception as error:
                if type(error).__name__ != "ZstdError":
                    raise
                raise FileProblem(f"{self.name} cannot be read: {error}.") from error

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """A stream of the decompressed bytes. Raises FileProblem."""
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
    """The suffix that names a file's format, in lower case, without its dot and without that of the compression."""
    name = Path(path).name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix.removeprefix(".")


def decompressed(raw: BinaryIO, path: str) -> IO[bytes]:
    """A stream of a file's decompressed bytes. The suffix of `path` says how the file is compressed."""
    if path.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Zstd(raw), BUFFER)
    return raw


class _Zstd(io.RawIOBase):
    """A stream of the decompressed frames of a .zst file.

    The reader of the zstandard library takes a frame that is cut off for the end of the file; this reader raises
    EOFError.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._decompressor = zstandard().ZstdDecompressor()
        self._frame: Any = None
        self._compressed = b""
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._data:
            compressed = self._compressed or self._raw.read(ZSTD_READ)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._data, self._compressed = memoryview(self._frame.decompress(compressed)), b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        count = min(len(into), len(self._data))
        into[:count], self._data = self._data[:count], self._data[count:]
        return count


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A stream to write a whole file, compressed as the suffix of `path` says.

    The bytes go to a temporary file, which replaces `path` at the end, and only if no exception was raised. Raises
    FileProblem if the folder cannot be written to.
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
                # No time stamp, so that equal content gives equal files.
                with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as compressed:
                    yield cast(IO[bytes], compressed)
            elif path.lower().endswith(".zst"):
                with zstandard().ZstdCompressor().stream_writer(raw, closefd=False) as compressed:
                    yield compressed
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def expect_new(output: str, restart: bool) -> None:
    """Raises FileProblem for an output that exists, unless the run starts again."""
    if Path(output).exists() and not restart:
        raise FileProblem(f"{output} already exists; give another name, or --restart to overwrite the file.")


def check_files(inputs: Collection[str], output: str, form: str, restart: bool) -> None:
    """Find what would stop the work at its files: the model, which takes longer to load, is loaded after them.

    form: the format of the output
    restart: whether the output may exist

    Raises FileProblem for an input that cannot be read, an output that exists or cannot be written, and a format whose
    library is not installed.
    """
    for path in inputs:
        # A pipe's writer would take the end of a look for the end of its reader.
        if path != STANDARD and not Path(path).is_fifo():
            with Source(path).open():
                pass
    formats = [*map(format_of, inputs), form]
    if "parquet" in formats:
        needed("pyarrow.parquet", "Parquet files")
    if output.lower().endswith(".zst"):
        zstandard()
    if output == STANDARD:
        return
    expect_new(output, restart)
    if not Path(output).parent.is_dir():
        raise FileProblem(f"{output} cannot be written: there is no folder {Path(output).parent}.")


def zstandard() -> Any:
    """The module `zstandard`. Raises FileProblem if it is not installed."""
    return needed("zstandard", ".zst files")


def needed(module: str, what: str, extra: str = "files") -> Any:
    """Import an optional module.

    what: the plural noun for an error, such as "Parquet files"
    extra: the extra of the package rerankd that installs the module

    Raises FileProblem if the module is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise FileProblem(f"{what} need an extra package: pip install 'rerankd[{extra}]'.") from None
