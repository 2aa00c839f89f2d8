"""A process that this one starts, and the connection to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Pipe

END_SECONDS = 5.0
"""The time in which a process must end after it is asked to."""


class Child:
    """A Python process that runs a module. The module's argument is the descriptor of its end of `connection`.

    It ends when the connection does, so at the latest with this process, however that ends.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        """environment: further variables of the process"""
        self.connection, child_end = Pipe()
        path = os.pathsep.join(filter(None, sys.path))
        with child_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(child_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is this process's own
                pass_fds=(child_end.fileno(),),
                env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            )

    def how_it_ended(self) -> str:
        """The way in which the process ended, in words. A process without a connection that still runs is killed."""
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return in_words(code)


def in_words(code: int) -> str:
    """The way in which a process ended, in words. code: its exit code, or the negative number of a signal"""
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
