"""The messages between a server's process and its replicas, over a pair of sockets. Both run the same version."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, TypeAlias

from rerankd.core import EngineError, OutOfMemory, PromptGroup, Stage
from rerankd.models.facts import HeadFacts
from rerankd.options import LoadOptions
from rerankd.parallel.messages import End
from rerankd.threads import Share

log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Load:
    """Load the model.

    options: with the model's folder and recipe, so that the process need not find them again
    share: the share of the machine for the process, or for the first process that is forked from it
    forks: whether the process computes nothing, and replicas are forked from it
    level: the log level while it loads
    """

    options: LoadOptions
    share: Share
    forks: bool
    level: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is loaded."""

    head: HeadFacts


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """The model could not be loaded, and the process ends. why: the reason, as a sentence"""

    why: str


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork a replica. The descriptor of its connection follows."""

    share: Share


@dataclass(frozen=True, slots=True)
class Forked:
    """The replica was forked. pid: its process"""

    pid: int


@dataclass(frozen=True, slots=True)
class Reap:
    """Ask how a forked process ended, whose connection is closed; it is killed if it still runs."""

    pid: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """The way in which it ended. code: its exit code, or the negative number of a signal"""

    code: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The replica has scored a prompt, and takes batches."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a sign of life. The process answers at once, whatever it computes."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The sign of life of a replica's process."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups to score together. parts: the groups by unique numbers"""

    number: int
    parts: dict[int, PromptGroup]


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for these parts any more."""

    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The logits of a part, with its batches as stages; or the reason why there are none."""

    logits: list[float]
    stages: tuple[Stage, ...]
    error: str | None = None
    out_of_memory: bool = False

    @property
    def failure(self) -> EngineError | None:
        """The error to raise, if any."""
        if self.error is None:
            return None
        return OutOfMemory(self.error) if self.out_of_memory else EngineError(self.error)


@dataclass(frozen=True, slots=True)
class Scored:
    """A batch is done. Parts that were dropped in time have no outcome.

    batches, tokens, seconds, rate: the work of the replica, as in `EngineLoad`
    """

    number: int
    outcomes: Mapping[int, Outcome]
    batches: int
    tokens: int
    seconds: float
    rate: float


Message: TypeAlias = (
    Load
    | Loaded
    | NotLoaded
    | Fork
    | Forked
    | Reap
    | Reaped
    | Ready
    | Ping
    | Pong
    | Batch
    | Drop
    | Scored
    | End
    | logging.LogRecord
)


class Link:
    """One end of the connection. Any thread may send; one thread receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Raises OSError where nobody is at the other end."""
        with self._sending:
            self._connection.send(message)

    def receive(self) -> Any:
        """The next message; None once the other end is gone, or says what nobody understands."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return None
        except Exception as error:  # unpickling raises anything
            log.error("A message of another process of this server cannot be read: %r", error)
            return None

    def has_message(self, seconds: float) -> bool:
        """Whether there is something to receive, or the other end is gone; it waits so long for that."""
        return self._connection.poll(seconds)

    def send_descriptor(self, descriptor: int, pid: int) -> None:
        """Hand over an open file to the process at the other end, whose number is `pid`."""
        with self._sending:
            send_handle(self._connection, descriptor, pid)

    def receive_descriptor(self) -> int:
        """The open file that `send_descriptor` handed over."""
        return recv_handle(self._connection)

    def close(self) -> None:
        """Let go of this end."""
        self._connection.close()
