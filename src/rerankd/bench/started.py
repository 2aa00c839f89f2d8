"""A `rerankd serve` of its own, for as long as something is measured."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rerankd.core import RerankdError

END_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Started:
    """A server that is ready.

    seconds: from its start to its ready line
    """

    url: str
    process: subprocess.Popen[str]
    seconds: float


@contextmanager
def started(*arguments: str) -> Iterator[Started]:
    """A server of these arguments on a port that the system picks, ended by SIGTERM.

    Raises RerankdError where it ends before it is ready; it has said why on stderr.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve", *arguments, "--port", "0", "--uvicorn-log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if match := re.search(r"is ready: (http://\S+)", line):
                yield Started(match[1], process, time.perf_counter() - start)
                break
        else:
            raise RerankdError(f"rerankd serve {' '.join(arguments)} ended before it was ready.")
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
