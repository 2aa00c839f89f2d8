"""Log lines that are written in the background: logging never waits for a reader."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections import deque
from typing import TextIO

MOST_CHARACTERS = 4 << 20
"""Characters that wait to be written; beyond them lines are dropped."""
FLUSH_SECONDS = 1.0
"""Seconds that the end of the process waits for lines to be written."""
BLOCKED_SECONDS = 0.05


class Lines:
    """The lines of one stream, and a thread that writes them. Lines that cannot be written are dropped and counted."""

    def __init__(self, stream: TextIO, note: logging.Formatter) -> None:
        """note: formats the line that says how many were dropped, once lines can be written again"""
        self._stream = stream
        self._note = note
        self._waiting: deque[str] = deque()
        self._characters = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Queue a line, or drop it where too much waits already."""
        with self._changed:
            if self._characters + len(line) > MOST_CHARACTERS:
                self._dropped += 1
                return
            self._characters += len(line)
            self._waiting.append(line)
            if self._writer is None:
                # A daemon: a reader that never reads does not keep the process.
                self._writer = threading.Thread(target=self._write, name="rerankd-lines", daemon=True)
                self._writer.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, or FLUSH_SECONDS."""
        with self._changed:
            self._changed.wait_for(lambda: not self._characters, FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                line = self._waiting.popleft()
                dropped = self._dropped
            try:
                if dropped:
                    self._write_line(self._note_of(dropped))
                    with self._changed:
                        self._dropped -= dropped
                self._write_line(line)
            except (OSError, ValueError):  # nobody reads any more, no space, a stream that was closed
                with self._changed:
                    self._dropped += 1
            with self._changed:
                self._characters -= len(line)
                self._changed.notify_all()

    def _note_of(self, dropped: int) -> str:
        record = logging.LogRecord(
            "rerankd", logging.WARNING, __file__, 0, "%d lines of the log could not be written", (dropped,), None
        )
        return self._note.format(record)

    def _write_line(self, line: str) -> None:
        text = line + "\n"
        try:
            descriptor = self._stream.fileno()
        except (OSError, io.UnsupportedOperation):
            self._stream.write(text)
            return
        # Without Python's own buffer, whose lock would be held while a write blocks.
        unwritten = memoryview(text.encode(errors="backslashreplace"))
        while unwritten:
            try:
                unwritten = unwritten[os.write(descriptor, unwritten) :]
            except BlockingIOError:
                time.sleep(BLOCKED_SECONDS)


class LineHandler(logging.Handler):
    """Passes records to `Lines`."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Never blocks. The record is formatted here, in the context of its call."""
        try:
            line = self.format(record)
        except Exception as error:  # as in logging: an error in a log line is no reason to fail
            line = f"A log line of {record.name} cannot be formatted: {error!r}"
        self._lines.put(line)

    def flush(self) -> None:
        """See `Lines`."""
        self._lines.flush()
