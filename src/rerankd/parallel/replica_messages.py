"""What a server's process and its replicas tell each other. Both are of one program, over a pair of sockets."""

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
    """What a process loads. options: with the model's folder and recipe, which no process looks for again

    share: of the machine, for the process itself or for the first that is forked from it
    forks: whether the process computes nothing, and is forked into those that do
    level: of the lines that it logs while it loads
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
    """The model is not, and the process ends. why: a sentence"""

    why: str


@dataclass(frozen=True, slots=True)
class Fork:
    """Become a replica too. The descriptor of its connection follows."""

    share: Share


@dataclass(frozen=True, slots=True)
class Forked:
    """The replica's process."""

    pid: int


@dataclass(frozen=True, slots=True)
class Reap:
    """A forked process whose connection has ended; it is to be ended if it has not."""

    pid: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """How it ended. code: its exit code, or the number of a signal below 0"""

    code: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The replica has scored a prompt, and takes batches."""


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered at once, whatever is computed."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The replica's process runs."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups to score together. parts: by numbers that no other part has"""

    number: int
    parts: dict[int, PromptGroup]


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for these parts any more."""

    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A part's logits, with the batches that it was in; or why there are none."""

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
    """A batch is done; of parts that were dropped in time there is no outcome.

    batches, tokens, seconds, rate: the replica's, as in `EngineLoad`
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
    """One end of the connection. Any thread may send, one receives."""

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

    def is_told(self, seconds: float) -> bool:
        """Whether there is something to receive, or the other end is gone; it waits so long for that."""
        return self._connection.poll(seconds)

    def send_descriptor(self, descriptor: int, pid: int) -> None:
        """Hand over an open file to the process at the other end, whose number is `pid`."""
        with self._sending:
            send_handle(self._connection, descriptor, pid)

    def receive_descriptor(self) -> int:
        """What `send_descriptor` handed over."""
        return recv_handle(self._connection)

    def close(self) -> None:
        """Let go of this end."""
        self._connection.close()
