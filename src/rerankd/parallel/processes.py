"""The processes of a model's replicas: started, forked, and ended."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from typing import Any

from rerankd.core import ModelError
from rerankd.models.facts import HeadFacts
from rerankd.options import LoadOptions
from rerankd.parallel.child import Child, in_words
from rerankd.parallel.replica_messages import Fork, Forked, Link, Load, Loaded, NotLoaded, Ready, Reap, Reaped
from rerankd.threads import Share

log = logging.getLogger("rerankd")

ANSWER_SECONDS = 30.0
"""The time in which the loading process must answer a request to fork or to end a process."""
QUIET = {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Variables that keep a process without threads; a process with threads must not be forked."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a replica runs. environment: variables of its process, beside this one's"""

    options: LoadOptions
    share: Share
    environment: Mapping[str, str]


class Loader:
    """A process that has loaded the model. Raises ModelError if it could not."""

    def __init__(self, number: int, home: Home, forks: bool) -> None:
        self._number = number
        self._child = Child("rerankd.replica", {**home.environment, **(QUIET if forks else {})})
        self.link = Link(self._child.connection)
        self._lock = threading.Lock()
        # One replica logs the facts of the model.
        level = log.getEffectiveLevel() if number == 0 or forks else logging.ERROR
        try:
            self.link.send(Load(home.options, home.share, forks, level))
        except OSError:  # it has ended, which `loaded` tells
            return

    def loaded(self) -> HeadFacts:
        """The facts of the model's head, once it is loaded. Raises ModelError."""
        answer = received(self.link, self._number)
        if isinstance(answer, Loaded):
            return answer.head
        why = answer.why if isinstance(answer, NotLoaded) else f"Its process has ended {self.how_it_ended()}."
        raise ModelError(f"Replica {self._number} could not load the model: {why}")

    def fork(self, number: int, share: Share) -> Replica:
        """Fork a replica from the process. Raises ModelError if the process has ended."""
        parent_end, child_end = Pipe()
        with child_end:
            try:
                with self._lock:
                    self.link.send(Fork(share))
                    self.link.send_descriptor(child_end.fileno(), self._child.process.pid)
                    forked = received(self.link, number, ANSWER_SECONDS)
                    self._end_if_silent(forked)
            except OSError:
                forked = None
        if not isinstance(forked, Forked):
            raise ModelError(f"The process that replicas are forked from has ended {self.how_it_ended()}.")
        return Replica(number, Link(parent_end), self, forked.pid)

    def reap(self, pid: int) -> str:
        """The way in which a forked process ended, in words. A process that still runs is killed."""
        try:
            with self._lock:
                self.link.send(Reap(pid))
                reaped = received(self.link, self._number, ANSWER_SECONDS)
                self._end_if_silent(reaped)
        except OSError:
            reaped = None
        return in_words(reaped.code) if isinstance(reaped, Reaped) else "with the one that it was forked from"

    def _end_if_silent(self, answer: object) -> None:
        """End a process that was stopped or hangs, so that others who ask it do not wait as long once more."""
        if answer is None:
            self.kill()

    def how_it_ended(self) -> str:
        """See `Child`."""
        return self._child.how_it_ended()

    def kill(self) -> None:
        """End the process at once."""
        self._child.process.kill()


@dataclass(frozen=True, slots=True)
class Replica:
    """A running replica. pid: None for the loader itself"""

    number: int
    link: Link
    loader: Loader
    pid: int | None = None

    def receive(self, seconds: float | None = None) -> Any:
        """The next message; None once the process is gone, or silent for too long. Its log lines are logged here."""
        return received(self.link, self.number, seconds)

    def kill(self) -> None:
        """End the process at once."""
        if self.pid is None:
            self.loader.kill()
        else:
            # No other process has the number, which is free when `how_it_ended` has been called.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def how_it_ended(self) -> str:
        """The way in which the process ended, in words. A process without a connection that still runs is killed."""
        return self.loader.how_it_ended() if self.pid is None else self.loader.reap(self.pid)


class Processes:
    """Starts a process for each replica, and another one in its place. Any thread may call any method."""

    def __init__(self, homes: Sequence[Home], forks: bool) -> None:
        """forks: whether replicas share the memory of the weights, as they do on a CPU"""
        self.homes = homes
        self.head: HeadFacts | None = None
        self._forks = forks
        self._forking, self._closing = threading.Lock(), threading.Lock()
        self._forked_from: Loader | None = None
        self._loaders: list[Loader] = []
        self._closed = False

    def start(self, number: int) -> Replica:
        """A replica that takes batches. Raises ModelError."""
        if self._forks:
            replica = self._fork(number)
        else:
            loader = self._load(number)
            self.head = loader.loaded()
            replica = Replica(number, loader.link, loader)
        timeout = self.homes[number].options.engine_timeout
        if not isinstance(replica.receive(None if timeout is None else timeout + ANSWER_SECONDS), Ready):
            replica.kill()
            raise ModelError(f"The process of replica {number} has ended {replica.how_it_ended()} before it was ready.")
        return replica

    def close(self) -> None:
        """End all loading processes. Processes that were forked from them end when their own connections close."""
        with self._closing:
            self._closed = True
        for loader in self._loaders:
            loader.kill()
        for loader in self._loaders:
            loader.how_it_ended()

    def _fork(self, number: int) -> Replica:
        """Fork a replica from the process that has loaded, or from a new one if that process has ended."""
        with self._forking:
            if self._forked_from is not None:
                try:
                    return self._forked_from.fork(number, self.homes[number].share)
                except ModelError as error:
                    log.error("%s The model is loaded again.", error)
            self._forked_from = None
            loader = self._load(number)
            self.head = loader.loaded()
            self._forked_from = loader
            return loader.fork(number, self.homes[number].share)

    def _load(self, number: int) -> Loader:
        with self._closing:
            if self._closed:
                raise ModelError("The engine is closed.")
            loader = Loader(number, self.homes[number], self._forks)
            self._loaders.append(loader)
        return loader


def received(link: Link, number: int, seconds: float | None = None) -> Any:
    """The next message that is no line of a log; None once the other end is gone, or silent for so long."""
    while seconds is None or link.has_message(seconds):
        message = link.receive()
        if not isinstance(message, logging.LogRecord):
            return message
        message.msg = f"Replica {number}: {message.msg}"
        logger = logging.getLogger(message.name)
        if logger.isEnabledFor(message.levelno):
            logger.handle(message)
    return None
