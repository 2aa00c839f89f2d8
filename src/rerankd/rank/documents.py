"""The documents of one query while its file is read: in memory, or on disk if there are many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

from rerankd.core import Content
from rerankd.rank.values import to_content

MEMORY_BYTES = 4 << 20
"""Bytes of one query's documents that stay in memory; larger ones go to a temporary file."""


class Documents:
    """Ids and contents of documents, in the order they were added. Only one iteration may run at a time."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 - closed by `__del__`
        self.count = 0

    def add(self, id: str, value: Any) -> None:
        """Add a document. `value` is its JSON value, which `to_content` accepts."""
        self._file.write(json.dumps([id, value], ensure_ascii=True).encode() + b"\n")
        self.count += 1

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        self._file.seek(0)
        for place, line in enumerate(self._file):
            id, value = json.loads(line)
            yield id, to_content(value, f"documents[{place}]")

    def __del__(self) -> None:
        self._file.close()
