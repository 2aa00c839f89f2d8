"""The loop: one worker thread takes batches from the queue, runs the model and settles the requests' futures."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from time import perf_counter

import torch

from rerankd.compute_thread import Compute, in_this_thread
from rerankd.core import EngineClosed, EngineDead, EngineError, EngineLoad, PackedBatch, PromptGroup, Stage
from rerankd.engine.batcher import Batcher, Job, Slice
from rerankd.engine.flight import Flight
from rerankd.engine.merging import merged, side_by_side
from rerankd.engine.packing import pack
from rerankd.engine.retries import NOT_FINITE, Budget, scored
from rerankd.engine.watchdog import Watchdog
from rerankd.memory import Trimmer, trim_memory
from rerankd.models.base import Model

log = logging.getLogger("rerankd")

IDLE_SECONDS = 2.0
"""After this time without a request, and again after the same time, the engine checks whether it can free memory."""
SECONDS_BETWEEN_TRIMS = 10.0
"""The time between two such checks if single requests come again and again."""
RATED_BATCHES = 32
"""The number of last batches from which the engine's speed is computed."""
PROBES = 3
"""The engine is given up when the model fails this many times on prompts that it scored before."""
PROBE_SECONDS = 0.5
"""The time between two probes: memory that another program took may be free again."""


class Engine:
    """Scores prompt groups with one model. `submit` may be called from any thread."""

    def __init__(
        self,
        model: Model,
        device: torch.device,
        batch_tokens: int,
        timeout: float | None = None,
        in_flight: int = 1,
        max_tokens: int | None = None,
        compute: Compute = in_this_thread,
    ) -> None:
        """timeout: seconds after which a batch is given up, and the engine with it; more on a slow machine; None for no
            limit
        in_flight: the number of batches that a device has at a time; from 2 on, one is packed and launched while
            another is computed
        max_tokens: the most tokens that may wait; a request alone may have more; None for no limit
        compute: runs a batch, in the engine's own thread or in a thread that several engines share
        """
        self.model = model
        self.device = device
        self._compute = compute
        self._in_flight = in_flight
        self._max_tokens = max_tokens
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._budget = Budget(batch_tokens)
        self._batcher = Batcher(batch_tokens)
        self._wake = threading.Condition()
        self._closed = False
        self._dead: EngineDead | None = None
        self._hung = False
        self._computing: list[Slice] = []
        self._scored_group: PromptGroup | None = None
        self._landed = 0.0
        self._batches, self._tokens, self._seconds = 0, 0, 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RATED_BATCHES)
        self._watchdog = None if timeout is None else Watchdog(timeout, self._hangs)
        self._worker = threading.Thread(target=self._run, name="rerankd-engine", daemon=True)
        self._worker.start()

    def load(self) -> EngineLoad:
        """The present load of the engine, and its work since its start."""
        with self._wake:
            tokens, seconds = (sum(values) for values in zip(*self._recent, strict=True)) if self._recent else (0, 0.0)
            return EngineLoad(
                waiting=self._batcher.documents,
                batches=self._batches,
                tokens=self._tokens,
                seconds=self._seconds,
                waiting_requests=len(self._batcher),
                waiting_tokens=self._batcher.tokens,
                running=len({piece.job for piece in self._computing}),
                rate=tokens / seconds if seconds else 0.0,
                most=self._budget.tokens,
                threads=self._threads,
            )

    @property
    def failure(self) -> EngineDead | None:
        """The reason why the engine answers no more requests; None while it works, and after `close`."""
        if self._dead is None and not self._closed and not self._worker.is_alive():
            self._die(EngineDead("The engine's thread is gone."))
        return self._dead

    def submit(
        self,
        group: PromptGroup,
        on_progress: Callable[[int], object] | None = None,
        stages: list[Stage] | None = None,
    ) -> Future[list[float]]:
        """Queue a group. The future gives its suffixes' logits in order (`group.values` of each), or EngineError, or
        EngineClosed, or EngineDead.

        stages: get, before the future is done, the time spent waiting (`queue`) and in each batch (`model`)

        Cancelling the future drops the documents that no batch has taken yet. Raises EngineBusy, EngineClosed and
        EngineDead.
        """
        job = Job(group, Future(), on_progress, [] if stages is None else stages)
        if not group.suffixes:
            job.future.set_result([])
            return job.future
        with self._wake:
            if self._dead:
                raise _again(self._dead)
            if self._closed:
                raise EngineClosed("The engine is closed.")
            self._batcher.expect_place(job, self._max_tokens)
            self._batcher.add(job)
            self._wake.notify()
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context whose submitted groups are queued at once.

        No batch is taken until the context ends, so that an idle engine packs the same groups into the same batches.
        """
        with self._wake:
            yield

    def close(self) -> None:
        """Finish the running batch, fail the waiting requests with EngineClosed, and stop the worker.

        `close` does not wait for a batch that hangs: its thread ends with the process.
        """
        with self._wake:
            self._closed = True
            waiting = self._batcher.drain()
            self._wake.notify()
        for job in waiting:
            job.fail(EngineClosed("The engine was closed before this request was answered."))
        # The watchdog looks on while the last batch is waited for.
        while self._worker.is_alive() and not self._hung and threading.current_thread() is not self._worker:
            self._worker.join(0.1)
        if self._watchdog:
            self._watchdog.close()

    def _leave(self, job: Job) -> None:
        with self._wake:
            self._batcher.drop(job)

    def give_up(self, error: EngineDead) -> None:
        """Fail all waiting and later requests: the model has stopped working, and the running batch may never end."""
        self._hung = True
        log.critical("The engine is given up: %s", error)
        self._die(error)

    def _hangs(self, seconds: float) -> None:
        """The running batch hangs."""
        self.give_up(EngineDead(f"A batch did not end in {seconds:.0f} seconds."))

    def _die(self, error: EngineDead) -> None:
        """Fail all waiting requests; no request is accepted any more."""
        with self._wake:
            self._dead = self._dead or error
            self._closed = True
            jobs = [*self._batcher.drain(), *(piece.job for piece in self._computing)]
            self._wake.notify()
        for job in jobs:
            job.fail(_again(self._dead))

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # after any error: no caller may wait for a thread that has ended
            log.critical("The engine has failed and is given up", exc_info=True)
            dead = error if isinstance(error, EngineDead) else EngineDead("The engine's thread failed.")
            dead.__cause__ = dead.__cause__ or (None if dead is error else error)
            self._die(dead)

    def _serve(self) -> None:
        trimmer, trimmed = Trimmer(), perf_counter()
        flights: deque[Flight] = deque()
        while True:
            with self._wake:
                awake = bool(flights) or self._wake.wait_for(lambda: self._closed or bool(self._batcher), IDLE_SECONDS)
                if self._closed and not flights:
                    return
                self._batcher.budget = self._budget.tokens
                batch = [] if self._closed else self._batcher.next_batch()
                self._computing = [*(piece for flight in flights for piece in flight.batch), *batch]
            if batch:
                self._record_waiting(batch)
                batch = side_by_side(batch) if self.model.shares_prefix else batch
                if self._in_flight == 1:
                    self._score(batch)
                else:
                    flights.append(self._launched(batch))
            if flights and (len(flights) == self._in_flight or not batch):
                self._land(flights.popleft())
            if not flights:
                self._computing = []
            if not awake or perf_counter() - trimmed >= SECONDS_BETWEEN_TRIMS:
                trimmer.look()
                trimmed = perf_counter()

    def _record_waiting(self, batch: Sequence[Slice]) -> None:
        now = perf_counter()
        for piece in batch:
            if not piece.job.started:
                piece.job.started = True
                piece.job.stages.append(Stage("queue", piece.job.queued, now - piece.job.queued))

    def _launched(self, batch: Sequence[Slice]) -> Flight:
        """The launched batch. A batch whose launch fails is scored again when the batch before it has landed."""
        began, groups = perf_counter(), [piece.group for piece in batch]
        try:
            return self._compute(partial(self._launch, batch, began, groups))
        except Exception as error:
            log.warning("A batch of %d requests could not be launched: %r", len(batch), error)
            return Flight(batch, began, None)

    def _launch(self, batch: Sequence[Slice], began: float, groups: Sequence[PromptGroup]) -> Flight:
        with self._watched(sum(piece.cost for piece in batch)), torch.inference_mode():
            return Flight.of(batch, began, self.model(self._packed(groups)))

    def _land(self, flight: Flight) -> None:
        tokens = sum(piece.cost for piece in flight.batch)
        try:
            with self._watched(tokens):
                logits = flight.result()
        except Exception as error:
            log.warning("A batch of %d requests failed: %r", len(flight.batch), error)
            logits = None
        if logits is None or not all(map(math.isfinite, logits)):
            self._score(flight.batch)
            return
        began = max(flight.began, self._landed)
        self._landed = perf_counter()
        self._budget.fitted()
        for piece, piece_logits in zip(flight.batch, self._done(flight.batch, began, logits), strict=True):
            self._scored_group = self._scored_group or piece.group
            self._deliver(piece.job, piece_logits)

    def _score(self, batch: Sequence[Slice]) -> None:
        good = False
        failed: list[tuple[Job, EngineError]] = []
        for piece, outcome in scored(batch, self._forward, self._budget, self._free):
            if isinstance(outcome, EngineError):
                failed.append((piece.job, outcome))
            else:
                good = True
                self._scored_group = self._scored_group or piece.group
                self._deliver(piece.job, outcome)
        if failed and not good:
            self._probe()
        for job, error in failed:
            job.fail(error)

    def _probe(self) -> None:
        """Score again a prompt that was scored once. Raises EngineDead where that fails: no request is at fault."""
        if self._scored_group is None:
            return
        for attempts_left in reversed(range(PROBES)):
            try:
                if all(map(math.isfinite, self._logits([self._scored_group]))):
                    return
                raise EngineError(NOT_FINITE)
            except Exception as error:
                log.exception("The model fails on prompts that it scored before")
                if not attempts_left:
                    raise EngineDead("The model fails on prompts that it scored before.") from error
            self._free()
            time.sleep(PROBE_SECONDS)

    def _forward(self, batch: Sequence[Slice]) -> list[list[float]]:
        began = perf_counter()
        return self._done(batch, began, self._logits([piece.group for piece in batch]))

    def _done(self, batch: Sequence[Slice], began: float, logits: list[float]) -> list[list[float]]:
        """The logits of each slice of a batch that has just ended."""
        tokens, took = sum(piece.cost for piece in batch), perf_counter() - began
        with self._wake:
            self._batches += 1
            self._tokens += tokens
            self._seconds += took
            self._recent.append((tokens, took))
        per_slice = []
        for piece in batch:
            piece.job.stages.append(Stage("model", began, took))
            count = len(piece.group.suffixes) * piece.group.values
            per_slice.append(logits[:count])
            logits = logits[count:]
        return per_slice

    def _logits(self, groups: Sequence[PromptGroup]) -> list[float]:
        return self._compute(partial(self._computed, self._packed(groups)))

    def _packed(self, groups: Sequence[PromptGroup]) -> PackedBatch:
        shares = self.model.shares_prefix
        return pack(merged(groups) if shares else groups, shares, self.device)

    def _computed(self, packed: PackedBatch) -> list[float]:
        with self._watched(len(packed.token_ids)), torch.inference_mode():
            logits: list[float] = self.model(packed).tolist()
        return logits

    def _watched(self, tokens: int) -> AbstractContextManager[None]:
        return self._watchdog.watching(tokens) if self._watchdog else nullcontext()

    def _free(self) -> None:
        if self.device.type == "cpu":
            trim_memory()
        else:
            torch.get_device_module(self.device).empty_cache()

    def _deliver(self, job: Job, logits: list[float]) -> None:
        if not job.waited_for:
            return
        job.logits.extend(logits)
        if job.on_progress:
            try:
                job.on_progress(len(logits) // job.group.values)
            except Exception as error:  # a caller's own code must not end the loop
                job.fail(error)
                return
        if len(job.logits) == len(job.group.suffixes) * job.group.values:
            job.finish()


def _again(dead: EngineDead) -> EngineDead:
    """A copy of the error for another request: one object that several threads raise would mix up their tracebacks."""
    error = EngineDead(str(dead))
    error.__cause__ = dead.__cause__
    return error
