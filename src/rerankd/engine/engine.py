"""The loop: one worker thread takes batches from the queue, runs the model and settles the requests' futures."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter

import torch

from rerankd.core import EngineClosed, EngineError, EngineLoad, PromptGroup, Stage
from rerankd.engine.batcher import Batcher, Job, Slice
from rerankd.engine.packing import pack
from rerankd.memory import Trimmer
from rerankd.models.base import Model

log = logging.getLogger("rerankd")

IDLE_SECONDS = 2.0
"""After so long without a request, and again after as long, the engine looks whether memory can be given back."""


class Engine:
    """Scores prompt groups with one model. `submit` may be called from any thread."""

    def __init__(self, model: Model, device: torch.device, batch_tokens: int) -> None:
        self.model = model
        self.device = device
        self._batcher = Batcher(batch_tokens)
        self._wake = threading.Condition()
        self._closed = False
        self._batches, self._tokens, self._seconds = 0, 0, 0.0
        self._worker = threading.Thread(target=self._run, name="rerankd-engine", daemon=True)
        self._worker.start()

    def load(self) -> EngineLoad:
        """How busy it is, and what it has done."""
        with self._wake:
            return EngineLoad(self._batcher.documents, self._batches, self._tokens, self._seconds)

    def submit(
        self,
        group: PromptGroup,
        on_progress: Callable[[int], object] | None = None,
        stages: list[Stage] | None = None,
    ) -> Future[list[float]]:
        """Queue a group. The future gives its suffixes' logits in order (`group.values` of each), or EngineError, or
        EngineClosed.

        stages: get, before the future is done, the time spent waiting (`queue`) and in each batch (`model`)

        Cancelling the future drops the documents that no batch has taken yet.
        """
        job = Job(group, Future(), on_progress, [] if stages is None else stages)
        if not group.suffixes:
            job.future.set_result([])
            return job.future
        with self._wake:
            if self._closed:
                raise EngineClosed("The engine is closed.")
            self._batcher.add(job)
            self._wake.notify()
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    def close(self) -> None:
        """Finish the batch in hand, fail what still waits with EngineClosed, and stop the worker."""
        with self._wake:
            self._closed = True
            waiting = self._batcher.drain()
            self._wake.notify()
        for job in waiting:
            _fail(job, EngineClosed("The engine was closed before this request was answered."))
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def _leave(self, job: Job) -> None:
        with self._wake:
            self._batcher.drop(job)

    def _run(self) -> None:
        trimmer = Trimmer()
        while True:
            with self._wake:
                awake = self._wake.wait_for(lambda: self._closed or bool(self._batcher), IDLE_SECONDS)
                if self._closed:
                    return
                batch = self._batcher.next_batch()
            if batch:
                self._score(batch)
            elif not awake:
                trimmer.look()

    def _score(self, batch: list[Slice]) -> None:
        began = perf_counter()
        for piece in batch:
            if not piece.job.logits:
                piece.job.stages.append(Stage("queue", piece.job.queued, began - piece.job.queued))
        try:
            logits = self._forward(batch)
        except Exception as error:
            log.exception("A batch of %d requests failed", len(batch))
            for piece in batch:
                _fail(piece.job, _caused(EngineError(f"The model failed on this request: {error}"), error))
            return
        took = perf_counter() - began
        with self._wake:
            self._batches += 1
            self._tokens += sum(piece.cost for piece in batch)
            self._seconds += took
        for piece in batch:
            piece.job.stages.append(Stage("model", began, took))
            count = len(piece.group.suffixes) * piece.group.values
            own, logits = logits[:count], logits[count:]
            self._deliver(piece.job, own)

    def _forward(self, batch: list[Slice]) -> list[float]:
        with torch.inference_mode():
            packed = pack([piece.group for piece in batch], self.model.shares_prefix, self.device)
            logits: list[float] = self.model(packed).tolist()
        return logits

    def _deliver(self, job: Job, logits: list[float]) -> None:
        if job.future.done():
            return
        if not all(math.isfinite(logit) for logit in logits):
            _fail(job, EngineError("The model's logits are not finite numbers; its weights or dtype are at fault."))
            return
        job.logits.extend(logits)
        if job.on_progress:
            try:
                job.on_progress(len(logits) // job.group.values)
            except Exception as error:  # a caller's own code must not end the loop
                _fail(job, error)
                return
        if len(job.logits) == len(job.group.suffixes) * job.group.values and job.future.set_running_or_notify_cancel():
            job.future.set_result(job.logits)


def _fail(job: Job, error: Exception) -> None:
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error
