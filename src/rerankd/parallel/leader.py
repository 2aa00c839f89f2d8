"""Rank 0 of a model in several processes: it starts the others, and has them compute each batch with it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import Empty, SimpleQueue

import torch
from torch import Tensor

from rerankd.backends.ranks import Ranks
from rerankd.core import EngineDead, EngineError, ModelError, PackedBatch
from rerankd.models.base import Model
from rerankd.models.heads import Head
from rerankd.options import LoadOptions
from rerankd.parallel.child import Child
from rerankd.parallel.messages import Done, End, Join, Start, broadcast

FAIL_TOGETHER_SECONDS = 10.0
"""Ranks that compute the same batch fail alike. A rank that has not failed after this time waits for a failed one."""


class Follower:
    """The process of another rank. `answers` has None at its end."""

    def __init__(self, options: LoadOptions, rank: int) -> None:
        self.rank = rank
        self.answers: SimpleQueue[Done | None] = SimpleQueue()
        self.child = Child("rerankd.follower")
        self.connection = self.child.connection
        self.connection.send(Start(options, rank))


class Followers:
    """The processes of all ranks but 0. They end with this process, however it ends, or when `close` is called."""

    def __init__(self, options: LoadOptions, ranks: Ranks) -> None:
        """options: with the model's folder and recipe, so that no process need find them again"""
        self.failure: EngineDead | None = None
        self._ranks = ranks
        self._on_failure: Callable[[EngineDead], object] | None = None
        self._own_part_done, self._closed = threading.Event(), False
        self._own_part_done.set()
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="rerankd-")
        self._followers = [Follower(options, rank) for rank in range(1, ranks.shard.size)]
        threading.Thread(target=self._listen, name="rerankd-followers", daemon=True).start()

    def lead(self, part: Model, device: torch.device) -> LeadingModel:
        """The model of all parts, once all are loaded. part: the part of rank 0. Raises ModelError if a part is not."""
        for follower in self._followers:
            answer = follower.answers.get()
            if answer is None or answer.failure is not None:
                why = str(self.failure) if answer is None else answer.failure
                raise ModelError(f"Rank {follower.rank} of {self._ranks.shard.size} could not load the model: {why}")
        folder = Path(self._folder.name)
        for connection in self._connections:
            connection.send(Join(folder))
        self._ranks.join(folder, device)
        return LeadingModel(part, self)

    def watch(self, on_failure: Callable[[EngineDead], object]) -> None:
        """Call `on_failure`, from any thread, when the ranks can compute no more."""
        with self._lock:
            self._on_failure = on_failure
        if self.failure is not None:
            on_failure(self.failure)

    def compute(self, part: Model, batch: PackedBatch) -> Tensor:
        """The logits of rank 0. part: its part of the model

        If all ranks fail alike, they are ready for another batch, and the error of `part` is raised. Otherwise they
        can compute no more: raises EngineError, and `watch` is called.
        """
        logits, error = None, None
        self._own_part_done.clear()
        try:
            broadcast(batch, self._connections, self._ranks)
            logits = part(batch)
        except Exception as raised:
            error = raised
        self._own_part_done.set()
        for follower in self._followers:
            answer = self._answer(follower, None if error is None else FAIL_TOGETHER_SECONDS)
            if answer is None or answer.sums != self._ranks.sums or (answer.failure is None) != (error is None):
                self._fail(f"Rank {follower.rank} of {self._ranks.shard.size} did not compute what rank 0 did.")
                raise EngineError(str(self.failure)) from error
        if error is not None:
            raise error
        assert logits is not None, "there is an error or a result"
        return logits

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        for follower in self._followers:
            try:
                follower.connection.send(End())
            except OSError:  # it has ended
                continue
        for follower in self._followers:
            follower.child.how_it_ended()
        self._folder.cleanup()

    @property
    def _connections(self) -> list[Connection]:
        return [follower.connection for follower in self._followers]

    def _answer(self, follower: Follower, seconds: float | None) -> Done | None:
        try:
            return follower.answers.get(timeout=seconds)
        except Empty:
            return None

    def _listen(self) -> None:
        """Receive answers, in a thread of its own, since a sum with a rank that has ended may wait for ever."""
        listened = {follower.connection: follower for follower in self._followers}
        while listened:
            for connection in wait(list(listened)):
                assert isinstance(connection, Connection)
                follower = listened[connection]
                try:
                    answer: Done = connection.recv()
                except (EOFError, OSError):
                    del listened[connection]
                    self._ended(follower)
                    continue
                follower.answers.put(answer)
                if answer.failure is not None and not self._own_part_done.wait(FAIL_TOGETHER_SECONDS):
                    self._fail(f"Rank {follower.rank} of {self._ranks.shard.size} failed alone: {answer.failure}.")

    def _ended(self, follower: Follower) -> None:
        how = follower.child.how_it_ended()
        follower.connection.close()
        if not self._closed:
            self._fail(f"The process of rank {follower.rank} of {self._ranks.shard.size} has ended {how}.")
        follower.answers.put(None)

    def _fail(self, why: str) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = EngineDead(why)
            on_failure = self._on_failure
        if on_failure is not None:
            on_failure(self.failure)


class LeadingModel:
    """A `Model` whose batches all ranks compute."""

    def __init__(self, part: Model, followers: Followers) -> None:
        self.followers = followers
        self._own = part

    @property
    def head(self) -> Head:
        """See `Model`."""
        return self._own.head

    @property
    def shares_prefix(self) -> bool:
        """See `Model`."""
        return self._own.shares_prefix

    def __call__(self, batch: PackedBatch) -> Tensor:
        """See `Model`."""
        return self.followers.compute(self._own, batch)
