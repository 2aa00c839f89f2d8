"""The journal of a run: a file beside the output that holds the finished results. A stopped run resumes from it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rerankd.rank.files import STANDARD, FileProblem, expect_new

SYNC_SECONDS = 1.0
"""Seconds between two calls of `fsync`.

A line survives the end of the process as soon as it is written, and a crash of the machine after the next `fsync`.
"""


class Journal:
    """Finished blocks of work: a first line that describes the work, then a JSON line for each block.

    A last line that a crash has cut off is removed, and its block is computed again. `close` keeps the file; `finish`
    deletes the file.
    """

    def __init__(self, output: str, about: Mapping[str, Any], restart: bool = False) -> None:
        """output: path of the work's output; "-" is standard output, whose journal is a temporary file

        about: the settings that must be equal for a journal to be resumed, as JSON-ready data
        restart: start again, with an empty journal

        Raises FileProblem if the output already exists, or if its journal belongs to different work or is in use by
        another process.
        """
        self._blocks: dict[int, tuple[int, str]] = {}
        self._old_end = 0
        self._synced = time.monotonic()
        self._path: Path | None = None
        if output == STANDARD:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
            return
        self._path = Path(f"{output}.part")
        expect_new(output, restart)
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
        """Path of the journal; None for standard output, which cannot be resumed."""
        return str(self._path) if self._path else None

    def __len__(self) -> int:
        return len(self._blocks)

    def digest(self, block: int) -> str | None:
        """The digest of a finished block; None if the block is not finished."""
        entry = self._blocks.get(block)
        return entry[1] if entry else None

    def add(self, block: int, digest: str, result: Any) -> None:
        """Write a finished block to the journal.

        digest: identifies the block's input
        result: its result, as JSON-ready data
        """
        line = json.dumps({"block": block, "digest": digest, "result": result}, ensure_ascii=True)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._blocks[block] = (start, digest)
        if self._path and time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def results(self) -> Iterator[tuple[Any, bool]]:
        """The result of each block by rising number, and whether an earlier run finished the block."""
        for _, (start, _) in sorted(self._blocks.items()):
            self._file.seek(start)
            yield json.loads(self._file.readline())["result"], start < self._old_end

    def finish(self) -> None:
        """Close and delete the journal, once the output is written."""
        self.close()
        if self._path:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal, and keep its file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _lock(self) -> None:
        with suppress(ImportError):  # Windows has no fcntl; there, nothing stops two processes from writing one journal
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileProblem(f"{self._path} is in use: another process writes the same output.") from None

    def _open(self, about: dict[str, Any]) -> None:
        self._file.seek(0)
        first = self._file.readline()
        changed = self._changed(first, about) if first.endswith(b"\n") else None
        # A journal that holds nothing yet binds nobody to its settings.
        if changed is None or (changed and not self._file.readline().endswith(b"\n")):
            self._file.truncate(0)
            self._file.write(json.dumps({"about": about}).encode() + b"\n")
            self._file.flush()
            return
        if changed:
            raise FileProblem(
                f"{self._path} is the journal of a run with another {', '.join(changed)}; give that run's settings, "
                "another output, or --restart to start again."
            )
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

    def _changed(self, line: bytes, about: dict[str, Any]) -> list[str]:
        """The names of the settings that differ from those of a journal's first line. Raises FileProblem."""
        try:
            written = dict(json.loads(line)["about"])
        except (ValueError, KeyError, TypeError):
            raise FileProblem(f"{self._path} is not a journal of rerankd; move it, or give another output.") from None
        return sorted(key for key in {*written, *about} if written.get(key) != about.get(key))
