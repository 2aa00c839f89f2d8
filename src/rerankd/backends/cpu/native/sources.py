"""Which sources the kernels are compiled from. `setup.py` runs this file by itself, so it imports none of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(folder: Path) -> str | None:
    """SHA-256, in hexadecimal, of the names and contents of a folder's C files; None where it has none.

    Files' times do not tell: a checkout leaves them in any order.
    """
    files = sorted([*folder.glob("*.c"), *folder.glob("*.h")])
    contents = hashlib.sha256()
    for file in files:
        text = file.read_bytes()
        contents.update(f"{file.name} {len(text)}\n".encode() + text)
    return contents.hexdigest() if files else None
