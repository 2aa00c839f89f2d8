"""Data parallelism: one queue, and several processes that take batches of it, each with the whole model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from rerankd.core import EngineClosed, EngineDead, EngineLoad, ModelError, PromptGroup, Stage
from rerankd.engine.batcher import Job
from rerankd.models.facts import HeadFacts
from rerankd.parallel.child import END_SECONDS
from rerankd.parallel.lookout import look
from rerankd.parallel.messages import End
from rerankd.parallel.places import Place
from rerankd.parallel.processes import Processes
from rerankd.parallel.replica_messages import Batch, Drop, Ping, Pong, Scored
from rerankd.parallel.shared_queue import SharedQueue, closed

log = logging.getLogger("rerankd")

STARTS = 8
"""A replica is given up when its process has ended, or failed to start, this often in a row without a scored batch."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second of these starts; the time doubles for each later start."""


class Replicas:
    """The interface of `Engine` over several processes that each have an engine.

    Requests wait in one queue. The replica with the fewest tokens to compute takes the next batch, so several replicas
    compute a long request. A replica whose process ends or hangs is started again; others compute its batches.
    """

    def __init__(
        self,
        processes: Processes,
        batch_tokens: int,
        in_flight: int = 1,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """The arguments are those of `Engine`: `max_tokens` for all replicas together, the others for each of them.

        Returns when all replicas take batches. Raises ModelError, with no process left, where one cannot.
        """
        self._processes = processes
        self._batch_tokens = batch_tokens
        self._in_flight = in_flight
        self._max_tokens = max_tokens
        self._queue = SharedQueue(batch_tokens, len(processes.homes))
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._closed, self._stop = False, threading.Event()
        self._dead: EngineDead | None = None
        self._unloaded: ModelError | None = None
        self._places = [Place(number) for number in range(len(processes.homes))]
        self._lives = [self._thread(self._live, place) for place in self._places]
        self._feeds = [self._thread(self._feed, place) for place in self._places]
        if timeout is not None:
            arguments = self._places, self._changed, self._stop, timeout
            threading.Thread(target=look, args=arguments, name="rerankd-lookout", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._unloaded or all(place.replica for place in self._places))
        if self._unloaded is not None:
            self.close()
            raise self._unloaded

    @property
    def head(self) -> HeadFacts:
        """The facts of the model's head."""
        assert self._processes.head is not None, "replicas have been started"
        return self._processes.head

    def load(self) -> EngineLoad:
        """The present load of all replicas, and their work since the start."""
        with self._changed:
            places = tuple(place.load() for place in self._places)
            return EngineLoad(
                waiting=self._queue.documents,
                batches=sum(place.batches for place in places),
                tokens=sum(place.tokens for place in places),
                seconds=sum(place.seconds for place in places),
                waiting_requests=self._queue.requests,
                waiting_tokens=self._queue.tokens,
                running=len({part.slice.job for place in self._places for part in place.parts}),
                rate=sum(place.rate for place in self._places),
                most=self._batch_tokens,
                threads=sum(home.share.threads for home in self._processes.homes),
                replicas=places,
            )

    @property
    def failure(self) -> EngineDead | None:
        """The reason why no request is answered any more; None while the replicas work, and after `close`."""
        return self._dead

    def submit(
        self,
        group: PromptGroup,
        on_progress: Callable[[int], object] | None = None,
        stages: list[Stage] | None = None,
    ) -> Future[list[float]]:
        """See `Engine.submit`. ReplicaLost is an EngineError too."""
        job = Job(group, Future(), on_progress, [] if stages is None else stages)
        if not group.suffixes:
            job.future.set_result([])
            return job.future
        with self._changed:
            if self._dead:
                raise EngineDead(str(self._dead))
            if self._closed:
                raise EngineClosed("The engine is closed.")
            self._queue.add(job, self._max_tokens)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    @contextmanager
    def held(self) -> Iterator[None]:
        """See `Engine.held`."""
        with self._changed:
            yield

    def close(self) -> None:
        """Finish the batches of the replicas, fail waiting requests with EngineClosed, and end the processes."""
        with self._changed:
            self._closed = True
            waiting = self._queue.drain()
            self._changed.notify_all()
        for job in waiting:
            job.fail(closed())
        with self._changed:
            self._changed.wait_for(lambda: not any(place.batches for place in self._places))
            running = [(place.replica, self._lives[place.number]) for place in self._places if place.replica]
            self._stop.set()
            self._changed.notify_all()
        for replica, _ in running:
            with suppress(OSError):  # it has ended
                replica.link.send(End())
        for replica, life in running:
            self._join(life)
            if life.is_alive():
                replica.kill()
                self._join(life)
        self._processes.close()
        for thread in (*self._lives, *self._feeds):
            self._join(thread)

    def _join(self, thread: threading.Thread) -> None:
        if thread is not threading.current_thread():
            thread.join(END_SECONDS)

    def _thread(self, run: Callable[[Place], None], place: Place) -> threading.Thread:
        thread = threading.Thread(target=run, args=(place,), name=f"rerankd-replica-{place.number}", daemon=True)
        thread.start()
        return thread

    def _leave(self, job: Job) -> None:
        """Remove a job that is answered, or that nobody waits for."""
        with self._changed:
            if not self._queue.leave(job):
                return
            for place in self._places:
                place.drops += [part.number for part in place.parts if part.slice.job is job]
            self._changed.notify_all()

    def _feed(self, place: Place) -> None:
        """Send a replica its batches, in a thread of its own, so that a replica that does not read delays no other."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stop.is_set() or place.drops or place.asked or self._is_next(place)
                )
                if self._stop.is_set():
                    return
                replica, messages = place.replica, list[Drop | Ping | Batch](place.messages())
                if self._is_next(place) and (parts := self._queue.take()):
                    number = self._queue.next_number()
                    place.batches[number] = parts
                    messages.append(Batch(number, {part.number: part.slice.group for part in parts}))
                place.sends = True
            # A message that cannot be sent means that the process has ended, which another thread sees too.
            with suppress(OSError):
                for message in messages:
                    if replica is not None:
                        replica.link.send(message)
            with self._changed:
                place.sends = False
                self._changed.notify_all()

    def _is_next(self, place: Place) -> bool:
        """Whether a document waits, and this replica has the fewest tokens of the replicas that take a batch now."""
        if not self._queue:
            return False
        taking = [
            candidate
            for candidate in self._places
            if candidate.replica and not candidate.sends and candidate.has_room(self._in_flight)
        ]
        return place is min(taking, key=lambda candidate: (candidate.tokens, candidate.number), default=None)

    def _live(self, place: Place) -> None:
        """Start a replica, hear it, and start it again when it has ended."""
        while not self._stop.is_set():
            try:
                replica = self._processes.start(place.number)
            except Exception as error:
                self._not_started(place, error)
            else:
                with self._changed:
                    place.begins(replica)
                    late = self._stop.is_set()
                    self._changed.notify_all()
                if late:  # `close` did not see it
                    replica.kill()
                while isinstance(answer := replica.receive(), (Scored, Pong)):
                    with self._changed:
                        place.silent = 0
                    if isinstance(answer, Scored):
                        self._settle(place, answer)
                self._lose(place)
                how = replica.how_it_ended()
                if not self._closed:
                    log.error("The process of replica %d has ended %s.", place.number, how)
            if self._stop.is_set() or not self._may_start(place):
                return

    def _not_started(self, place: Place, error: Exception) -> None:
        with self._changed:
            if not place.starts:
                self._unloaded = self._unloaded or (error if isinstance(error, ModelError) else ModelError(str(error)))
                self._stop.set()
            self._changed.notify_all()
        if not self._stop.is_set():
            log.error("Replica %d could not be started: %s", place.number, error)

    def _may_start(self, place: Place) -> bool:
        """Whether to start a replica again, now that it is time to; the engine is dead where none is."""
        with self._changed:
            place.fails += 1
            place.given_up = place.fails >= STARTS
            all_given_up = all(other.given_up for other in self._places)
        if place.given_up:
            log.critical("Replica %d has ended %d times in a row and is given up.", place.number, place.fails)
            if all_given_up:
                self._die(EngineDead("The processes of all replicas have ended, again and again."))
            return False
        pause = min(FIRST_PAUSE * 2 ** (place.fails - 2), LONGEST_PAUSE) if place.fails > 1 else 0.0
        return not self._stop.wait(pause)

    def _settle(self, place: Place, scored: Scored) -> None:
        """Hand over the results of a batch. Jobs' own callbacks are called one after the other."""
        with self._telling:
            with self._changed:
                place.has_done(scored)
                settled = self._queue.settle(place.batches.pop(scored.number), scored)
                self._changed.notify_all()
            for job, documents in settled.progress:
                if job.on_progress and documents and job.waited_for:
                    try:
                        job.on_progress(documents)
                    except Exception as raised:  # a caller's own code must not end the loop
                        settled.failed.append((job, raised))
        for job, error in settled.failed:
            job.fail(error)
        for job in settled.finished:
            job.finish()

    def _lose(self, place: Place) -> None:
        """Give the parts of a replica whose process has ended to others, or fail them if the engine is being closed."""
        with self._changed:
            if self._closed:
                lost: list[tuple[Job, Exception]] = [(part.slice.job, closed()) for part in place.parts]
            else:
                lost = self._queue.put_back(place.batches.values(), self._in_flight)
            place.ends()
            self._changed.notify_all()
        for job, error in lost:
            job.fail(error)

    def _die(self, error: EngineDead) -> None:
        """Fail all waiting jobs; no job is accepted any more."""
        with self._changed:
            self._dead = error
            self._closed = True
            jobs = self._queue.drain_all()
            self._changed.notify_all()
        for job in jobs:
            job.fail(EngineDead(str(error)))
