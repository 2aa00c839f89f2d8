"""A process that holds the model for a server in another one.

    python -m rerankd.replica FILE_DESCRIPTOR

The descriptor is a connection to the server's process. When the connection ends, this process ends.

On a GPU the process computes the batches that it receives. On a CPU it only loads the model: each replica is forked
from it, so that all replicas share the memory of the weights, and a new replica need not load them.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import NoReturn

import torch

from rerankd.core import EngineClosed, ModelError, OutOfMemory, PromptGroup, Stage
from rerankd.engine.engine import Engine
from rerankd.loading import WARM_UP, plan
from rerankd.memory import trim_after_load
from rerankd.models.base import Model
from rerankd.models.facts import HeadFacts
from rerankd.options import LoadOptions
from rerankd.parallel.child import END_SECONDS
from rerankd.parallel.replica_messages import (
    Batch,
    Drop,
    Fork,
    Forked,
    Link,
    Load,
    Loaded,
    NotLoaded,
    Outcome,
    Ping,
    Pong,
    Ready,
    Reap,
    Reaped,
    Scored,
)
from rerankd.threads import Share

log = logging.getLogger("rerankd")

SECONDS_BETWEEN_LOOKS = 0.02


def main(descriptor: int) -> None:
    """Load, then compute or be forked, until the server ends."""
    # A terminal and a supervisor signal all processes at once; the server answers its last requests before it ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    link = Link(Connection(descriptor))
    request = link.receive()
    if not isinstance(request, Load):
        return
    _log_to(link, logging.ERROR)
    if not request.forks:
        request.share.take()
    try:
        # In a thread that ends: what OpenMP starts for a thread ends with it, and a process with threads cannot fork.
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(Computes.load, request.options, request.level)
            while not loading.done():
                if link.has_message(SECONDS_BETWEEN_LOOKS):  # no message is due, so the server has ended
                    os._exit(0)
            computes = loading.result()
    except ModelError as error:
        link.send(NotLoaded(str(error)))
        return
    link.send(Loaded(HeadFacts.of(computes.model.head)))
    _log_to(link, logging.WARNING)
    if request.forks:
        _fork(link, computes)
    else:
        _serve(link, computes)


@dataclass(frozen=True)
class Computes:
    """A loaded model, and the settings of its engine. warm_up: a prompt to begin with"""

    model: Model
    device: torch.device
    batch_tokens: int
    timeout: float | None
    in_flight: int
    warm_up: PromptGroup

    @classmethod
    def load(cls, options: LoadOptions, level: int) -> Computes:
        """Raises ModelError. The tokenizer is let go of. level: of the lines that loading logs"""
        planned = plan(options)
        placement = planned.placement
        logging.getLogger().setLevel(level)
        return cls(
            planned.load(),
            placement.device,
            options.max_batch_tokens or placement.batch_tokens,
            options.engine_timeout,
            placement.in_flight,
            planned.prompts.build(WARM_UP),
        )

    def engine(self) -> Engine:
        """An engine that has scored its first prompt. Raises EngineError."""
        engine = Engine(self.model, self.device, self.batch_tokens, self.timeout, self.in_flight)
        engine.submit(self.warm_up).result()
        return engine


def _fork(link: Link, computes: Computes) -> NoReturn:
    """Be forked whenever the server asks for it."""
    gc.collect()
    trim_after_load()
    # Otherwise the collector of each replica would write to all objects, and so copy their pages.
    gc.freeze()
    replicas: set[int] = set()
    while True:
        request = link.receive()
        if isinstance(request, Fork):
            descriptor = link.receive_descriptor()
            pid = os.fork()
            if pid == 0:
                _be_replica(descriptor, request.share, link, computes)
            os.close(descriptor)
            replicas.add(pid)
            link.send(Forked(pid))
        elif isinstance(request, Reap):
            replicas.discard(request.pid)
            link.send(Reaped(_end(request.pid)))
        else:
            # Replicas end by themselves too, except for one that someone has stopped.
            for pid in replicas:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)


def _end(pid: int) -> int:
    """How a forked process ended. It has a moment to end by itself."""
    signal.signal(signal.SIGALRM, lambda number, frame: os.kill(pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _be_replica(descriptor: int, share: Share, forked_by: Link, computes: Computes) -> NoReturn:
    """The work of a forked process, until it ends."""
    try:
        # Otherwise the server would not see the end of the process that owns this link.
        forked_by.close()
        link = Link(Connection(descriptor))
        _log_to(link, logging.WARNING)
        share.take()
        _serve(link, computes)
    except BaseException:
        log.critical("A replica has failed", exc_info=True)
    os._exit(1)


def _serve(link: Link, computes: Computes) -> NoReturn:
    """Compute batches."""
    turns = Turns(computes.engine(), computes.in_flight, link)
    link.send(Ready())
    while True:
        message = link.receive()
        if isinstance(message, Batch):
            turns.add(message)
        elif isinstance(message, Drop):
            turns.drop(message)
        elif isinstance(message, Ping):
            with suppress(OSError):  # the server is gone, which the next message tells
                link.send(Pong())
        else:
            os._exit(0)


def _log_to(link: Link, level: int) -> None:
    """Have the server's process write log records from `level` on."""
    logging.basicConfig(level=level, handlers=[_Forwarding(link)], format="%(message)s", force=True)


class _Forwarding(QueueHandler):
    """Sends each line with its arguments and its traceback written out."""

    def __init__(self, link: Link) -> None:
        super().__init__(SimpleQueue())
        self._link = link

    def enqueue(self, record: logging.LogRecord) -> None:
        """See `QueueHandler`."""
        with suppress(OSError):  # the server is gone, and this process ends
            self._link.send(record)


@dataclass(eq=False)
class _Running:
    """A batch that the engine has. parts_left: the number of its parts that are not done"""

    number: int
    parts_left: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)


class Turns:
    """Gives the engine its batches in order, as many at a time as its device computes: so it mixes no two of them."""

    def __init__(self, engine: Engine, at_a_time: int, link: Link) -> None:
        self._engine = engine
        self._at_a_time = at_a_time
        self._link = link
        self._lock = threading.RLock()
        self._waiting: deque[Batch] = deque()
        self._running: list[_Running] = []
        self._futures: dict[int, Future[list[float]]] = {}

    def add(self, batch: Batch) -> None:
        """Queue a batch."""
        with self._lock:
            self._waiting.append(batch)
            self._go_on()

    def drop(self, message: Drop) -> None:
        """Leave out the dropped parts whose computation has not begun."""
        with self._lock:
            for batch in self._waiting:
                for part in message.parts:
                    batch.parts.pop(part, None)
            futures = [self._futures[part] for part in message.parts if part in self._futures]
        for future in futures:
            future.cancel()

    def _go_on(self) -> None:
        while self._waiting and len(self._running) < self._at_a_time:
            batch = self._waiting.popleft()
            running = _Running(batch.number, len(batch.parts))
            self._running.append(running)
            if not batch.parts:
                self._finish(running)
                continue
            submitted: list[tuple[int, list[Stage], Future[list[float]]]] = []
            try:
                with self._engine.held():
                    for part, group in batch.parts.items():
                        stages: list[Stage] = []
                        submitted.append((part, stages, self._engine.submit(group, stages=stages)))
            except EngineClosed:
                os._exit(1)
            self._futures.update({part: future for part, _, future in submitted})
            for part, stages, future in submitted:
                future.add_done_callback(partial(self._done, running, part, stages))

    def _done(self, running: _Running, part: int, stages: list[Stage], future: Future[list[float]]) -> None:
        outcome = _outcome(future, stages)
        with self._lock:
            del self._futures[part]
            if outcome is not None:
                running.outcomes[part] = outcome
            running.parts_left -= 1
            if not running.parts_left:
                self._finish(running)

    def _finish(self, running: _Running) -> None:
        self._running.remove(running)
        self._go_on()
        load = self._engine.load()
        scored = Scored(running.number, running.outcomes, load.batches, load.tokens, load.seconds, load.rate)
        try:
            self._link.send(scored)
        except OSError:
            os._exit(0)


def _outcome(future: Future[list[float]], stages: list[Stage]) -> Outcome | None:
    """The outcome of a part; None for a dropped part. The process ends if the engine has failed."""
    if future.cancelled():
        return None
    model_stages = tuple(stage for stage in stages if stage.name == "model")
    error = future.exception()
    if error is None:
        return Outcome(future.result(), model_stages)
    if isinstance(error, EngineClosed):
        # The cause has been logged.
        os._exit(1)
    return Outcome([], model_stages, str(error), isinstance(error, OutOfMemory))


if __name__ == "__main__":
    main(int(sys.argv[1]))
