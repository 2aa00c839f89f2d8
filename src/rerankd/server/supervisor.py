"""The protocol of systemd's `sd_notify`: telling the program that started the server how the server is."""

from __future__ import annotations

import logging
import os
import socket

VARIABLE = "NOTIFY_SOCKET"
log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send a state, such as `READY=1`, to the socket that the supervisor names; nothing where there is no supervisor.

    A supervisor that does not listen is a line in the log, and no reason to end.
    """
    address = os.environ.get(VARIABLE, "")
    if not address:
        return
    # The name of an abstract socket is written with an @ for its first byte.
    path = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), path)
    except OSError as error:
        log.warning("%s=%s does not take %s: %s", VARIABLE, address, state, error.strerror or error)
