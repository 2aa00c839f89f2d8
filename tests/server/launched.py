"""The commands as a user runs them: in a process of their own, on a port that the system picks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVE = ("-m", "rerankd", "serve")
LAUNCH_SERVER = ("-m", "rerankd.launch_server")


@dataclass
class Launched:
    """A running server: its URL, its process, what it printed until it was ready."""

    url: str
    process: subprocess.Popen[str]
    said: str

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Send a signal. The exit code, and everything that was printed."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        self.said += rest
        return self.process.returncode, self.said


def environment(**changes: str) -> dict[str, str]:
    """No hub is asked, whatever the machine that the tests run on has set."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2", **changes}


def start(command: Sequence[str], cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=cwd,
    )


@contextmanager
def launched(
    program: Sequence[str], *arguments: str, cwd: Path | None = None, exit_code: int = 0, port: str = "0"
) -> Iterator[Launched]:
    """A server that is ready, stopped by Ctrl-C at the end, when it must exit with `exit_code` and no traceback."""
    process = start([*program, *arguments, "--port", port], cwd)
    said = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said += line
            ready = re.match(r"rerankd \S+ is ready: (https?://\S+) ", line)
            if ready:
                server = Launched(ready[1], process, said)
                yield server
                break
        else:
            raise AssertionError(f"it ended before it was ready, with {process.wait()}:\n{said}")
        if process.poll() is None:
            server.stop()
        assert process.returncode == exit_code, server.said
        assert "Traceback" not in server.said
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
