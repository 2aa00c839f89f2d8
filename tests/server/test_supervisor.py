"""What a supervisor such as systemd is told, over a datagram socket."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerankd.server.supervisor import notify
from tests.server.launched import SERVE, launched


@pytest.fixture
def supervisor(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A supervisor's socket, which the environment names."""
    name = getattr(request, "param", None) or str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(30)
        yield listener


@pytest.mark.parametrize("supervisor", ["", f"@rerankd-test-{os.getpid()}"], indirect=True, ids=["path", "abstract"])
def test_a_state_is_sent_to_a_path_and_to_an_abstract_name(supervisor: socket.socket) -> None:
    notify("STATUS=here")
    assert supervisor.recv(100) == b"STATUS=here"


def test_no_supervisor_and_a_deaf_one_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with caplog.at_level(logging.WARNING):
        notify("READY=1")
        assert not caplog.records
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        notify("READY=1")
    assert "nobody does not take READY=1: No such file or directory" in caplog.text


@pytest.mark.server
def test_a_server_says_when_it_is_ready_and_when_it_ends(supervisor: socket.socket, minilm_path: Path) -> None:
    with launched(SERVE, str(minilm_path)) as server:
        assert supervisor.recv(100) == b"READY=1"
        server.stop(signal.SIGTERM)
        assert supervisor.recv(100) == b"STOPPING=1"
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)
