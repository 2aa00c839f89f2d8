"""The finished part of a run, in a file beside its output, from which a stopped run continues."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rerankd.rank.files import STANDARD, FileProblem

SYNC_SECONDS = 1.0
"""Seconds between flushes to the disk. A written line survives the process, and after a flush the machine."""


class Journal:
    """Finished blocks of work, a line each behind a line that says what the work is.

    A line is there whole or not at all: one that a crash has cut off is taken away, and its block done again. Closing
    keeps the file, `finish` takes it away.
    """

    def __init__(self, output: str, about: Mapping[str, Any], restart: bool = False) -> None:
        """output: the file that the work is for, "-" for standard output, whose journal nothing survives

        about: what must be the same for the work to go on, as JSON-ready data

        Raises FileProblem for an output that is there already, for other work's journal, and for one in use.
        """
        self._blocks: dict[int, tuple[int, str]] = {}
        self._old_end = 0
        self._synced = time.monotonic()
        self._path: Path | None = None
        if output == STANDARD:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
            return
        self._path = Path(f"{output}.part")
        if Path(output).exists() and not restart:
            raise FileProblem(f"{output} is there already; give another name, or --restart to write it anew.")
        try:
            self._file = open(self._path, "a+b")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise FileProblem(f"{self._path} cannot be written: {error.strerror}.") from error
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
            self._open(json.loads(json.dumps(about)))
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> str | None:
        """The file; None where nothing is kept."""
        return str(self._path) if self._path else None

    def __len__(self) -> int:
        return len(self._blocks)

    def digest(self, block: int) -> str | None:
        """The digest of a finished block; None for one that is not finished."""
        found = self._blocks.get(block)
        return found[1] if found else None

    def add(self, block: int, digest: str, result: Any) -> None:
        """Keep a finished block."""
        line = json.dumps({"block": block, "digest": digest, "result": result}, ensure_ascii=True)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._blocks[block] = (start, digest)
        if self._path and time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def results(self) -> Iterator[tuple[Any, bool]]:
        """The results of all blocks in their order, and whether an earlier run finished the block."""
        for _, (start, _) in sorted(self._blocks.items()):
            self._file.seek(start)
            yield json.loads(self._file.readline())["result"], start < self._old_end

    def finish(self) -> None:
        """Take the file away: the output is there."""
        self.close()
        if self._path:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _lock(self) -> None:
        with suppress(ImportError):  # Windows has none, and no two processes there
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileProblem(f"{self._path} is in use: another process works on the same output.") from None

    def _open(self, about: dict[str, Any]) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):
            self._file.truncate(0)
            self._file.write(json.dumps({"about": about}).encode() + b"\n")
            self._file.flush()
            return
        self._expect(first, about)
        end = len(first)
        for line in iter(self._file.readline, b""):
            try:
                if not line.endswith(b"\n"):
                    break
                entry = json.loads(line)
                self._blocks[entry["block"]] = (end, entry["digest"])
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
        self._file.truncate(end)
        self._old_end = end

    def _expect(self, line: bytes, about: dict[str, Any]) -> None:
        try:
            found = json.loads(line)["about"]
        except (ValueError, KeyError, TypeError):
            raise FileProblem(f"{self._path} is not a journal of rerankd's; move it, or give another output.") from None
        if found != about:
            changed = sorted(key for key in {*found, *about} if found.get(key) != about.get(key))
            raise FileProblem(
                f"{self._path} is of a run with another {', '.join(changed)}; give what it was begun with, another "
                "output, or --restart to begin anew."
            )
