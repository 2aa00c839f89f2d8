"""The queue that replicas take batches of, with stand-ins for their processes: nothing is lost, mixed up or kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from multiprocessing.connection import Pipe
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.core import (
    EngineBusy,
    EngineClosed,
    EngineDead,
    EngineError,
    ModelError,
    PromptGroup,
    ReplicaLost,
    Segment,
    Stage,
)
from rerankd.engine.batcher import Batcher, Job
from rerankd.options import LoadOptions
from rerankd.parallel import replicas as module
from rerankd.parallel.lookout import LOOKS
from rerankd.parallel.processes import Home
from rerankd.parallel.replica_messages import Batch, Drop, Link, Outcome, Ping, Pong, Scored
from rerankd.parallel.replicas import Replicas
from rerankd.parallel.sharing import fair_budget
from rerankd.threads import Share
from tests.server.test_clients_that_leave import until

STAGES = (Stage("model", 9e9, 1.0),)


class Stand:
    """In place of a replica's process: the logit of a document is the sum of its tokens. 666 ends the process.

    gate: what is to be set for it to answer
    dies: whether it ends then instead
    signs: how often it gave a sign of life while it waited for the gate; None to give none
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.link = self
        self.gate = threading.Event()
        self.gate.set()
        self.dies = False
        self.signs: int | None = None
        self._held: Batch | None = None
        self.batches: list[list[list[int]]] = []
        self.dropped: list[int] = []
        self._messages: SimpleQueue[Any] = SimpleQueue()

    def send(self, message: Any) -> None:
        if isinstance(message, Drop):
            self.dropped += message.parts
        else:
            self._messages.put(message)

    def receive(self) -> Scored | Pong | None:
        message = self._held or self._messages.get()
        if isinstance(message, Ping):
            return Pong()
        if not isinstance(message, Batch):
            return None
        sums = {part: [sum(suffix.token_ids) for suffix in own.suffixes] for part, own in message.parts.items()}
        if self._held is None:
            self.batches.append(list(sums.values()))
        self._held = message
        while not self.gate.wait(0.01 if self.signs is not None else 30):
            assert self.signs is not None
            if not self._messages.empty() and isinstance(self._messages.get(), Ping):
                self.signs += 1
                return Pong()
        self._held = None
        if self.dies or any(666 in own for own in sums.values()):
            return None
        outcomes = {
            part: Outcome([], (), "the beast") if 667 in own else Outcome(list(map(float, own)), STAGES)
            for part, own in sums.items()
            if part not in self.dropped
        }
        return Scored(message.number, outcomes, len(self.batches), 10 * len(self.batches), 1.0, 10.0)

    def kill(self) -> None:
        self.dies = True
        self.gate.set()
        self._messages.put(None)

    def how_it_ended(self) -> str:
        return "as a stand-in does"


class Stands:
    """In place of `Processes`. refuse: raised by the next starts; opens: what is to be set for a start to end"""

    head = None

    def __init__(self, count: int) -> None:
        self.homes = [Home(LoadOptions("m"), Share(3), {})] * count
        self.started: list[Stand] = []
        self.refuse: Exception | None = None
        self.opens = threading.Event()
        self.opens.set()
        self.closed = False

    def start(self, number: int) -> Stand:
        assert self.opens.wait(30)
        if self.refuse:
            raise self.refuse
        self.started.append(Stand(number))
        return self.started[-1]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Replicas, Stands]]]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "STARTS", 3)
    made: list[tuple[Replicas, Stands]] = []

    def make(count: int = 2, budget: int = 1000, **options: Any) -> tuple[Replicas, Stands]:
        stands = Stands(count)
        made.append((Replicas(stands, budget, **options), stands))  # type: ignore[arg-type]
        stands.started.sort(key=lambda stand: stand.number)
        return made[-1]

    yield make
    for replicas, stands in made:
        for stand in stands.started:
            stand.gate.set()
        replicas.close()
        assert stands.closed


def group(*documents: int, length: int = 1) -> PromptGroup:
    """Documents of so many tokens, the last of which is the given one."""
    suffixes = tuple(Segment([0] * (length - 1) + [document]) for document in documents)
    return PromptGroup(Segment([1]), suffixes, (False,) * len(documents))


def test_a_large_request_is_computed_by_all_and_told_in_order(start: Callable[..., tuple[Replicas, Stands]]) -> None:
    replicas, stands = start(budget=10_000)
    first, second = stands.started
    first.gate.clear()
    told: list[int] = []
    stages: list[Stage] = []
    future = replicas.submit(group(*range(100), length=100), told.append, stages)
    until(lambda: [one.held_tokens == 0 for one in replicas.load().replicas] == [False, True])
    assert not told, "the documents before are not done"
    assert replicas.load().running == 1
    first.gate.set()
    assert future.result(30) == [float(number) for number in range(100)]
    assert [len(stand.batches[0][0]) for stand in (first, second)] == [51, 49]
    assert sum(told) == 100
    assert [stage.name for stage in stages] == ["queue", "model", "model"]
    load = replicas.load()
    assert (load.batches, load.tokens, load.rate, load.waiting, load.running) == (2, 20, 20.0, 0, 0)
    assert load.threads == 2 * 3


def test_a_short_request_goes_to_the_replica_with_less_to_do(start: Callable[..., tuple[Replicas, Stands]]) -> None:
    replicas, stands = start(in_flight=2)
    first, second = stands.started
    first.gate.clear()
    held = replicas.submit(group(1, 2))
    until(lambda: bool(first.batches))
    assert [replicas.submit(group(number)).result(30) for number in range(5)] == [[float(n)] for n in range(5)]
    assert second.batches == [[[number]] for number in range(5)]
    first.gate.set()
    assert held.result(30) == [1.0, 2.0]


def test_what_ends_a_process_twice_is_given_up_alone(start: Callable[..., tuple[Replicas, Stands]]) -> None:
    replicas, stands = start(1)
    with replicas.held():
        futures = [replicas.submit(group(number)) for number in (7, 666, 8, 667)]
    assert futures[0].result(30) == [7.0]
    assert futures[2].result(30) == [8.0]
    with pytest.raises(ReplicaLost, match="2 processes ended"):
        futures[1].result(30)
    with pytest.raises(EngineError, match="the beast"):
        futures[3].result(30)
    assert stands.started[0].batches == [[[7], [666], [8], [667]]]
    assert replicas.submit(group(5)).result(30) == [5.0]
    until(lambda: replicas.load().replicas[0].restarts == 2)
    assert replicas.failure is None


def test_what_a_lost_replica_had_is_computed_by_another(start: Callable[..., tuple[Replicas, Stands]]) -> None:
    replicas, stands = start(budget=10_000)
    for stand in stands.started:
        stand.gate.clear()
    future = replicas.submit(group(*range(100), length=100))
    until(lambda: all(stand.batches for stand in stands.started))
    stands.refuse = ModelError("No memory.")
    first, second = stands.started
    first.dies = True
    first.gate.set()
    second.gate.set()
    assert future.result(30) == [float(number) for number in range(100)]
    assert len(second.batches) == 2


def test_a_replica_that_gives_no_sign_of_life_is_ended_and_what_it_had_computed_by_another(
    start: Callable[..., tuple[Replicas, Stands]], caplog: pytest.LogCaptureFixture
) -> None:
    replicas, stands = start(timeout=0.6)
    silent = stands.started[0]
    silent.gate.clear()
    assert replicas.submit(group(*range(100), length=100)).result(30) == [float(number) for number in range(100)]
    assert silent.dies
    assert "Replica 0 gives no sign of life, and its process is ended." in caplog.text
    until(lambda: replicas.load().replicas[0].restarts == 1)
    # Those that answer are not ended, however long they have nothing to do.
    others = stands.started[1:]
    seen = replicas._places[1].silent
    until(lambda: replicas._places[1].silent != seen)
    assert not any(stand.dies for stand in others)


def test_what_cannot_be_understood_is_the_end_of_a_replica(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = Pipe()
    theirs.send_bytes(b"\x80\x05nonsense")
    assert Link(ours).receive() is None
    assert "cannot be read" in caplog.text


def test_without_replicas_the_engine_is_dead(
    start: Callable[..., tuple[Replicas, Stands]], caplog: pytest.LogCaptureFixture
) -> None:
    replicas, stands = start()
    stands.refuse = ModelError("No memory.")
    stands.opens.clear()
    for stand in stands.started:
        stand.kill()
    # A request that both take before they are seen to have ended is lost with them, which is another error.
    until(lambda: not any(place.replica for place in replicas._places))
    waiting = replicas.submit(group(1))
    stands.opens.set()
    with pytest.raises(EngineDead, match="of all replicas have ended"):
        waiting.result(30)
    assert isinstance(replicas.failure, EngineDead)
    with pytest.raises(EngineDead):
        replicas.submit(group(2))
    assert "Replica 0 could not be started: No memory." in caplog.text


def test_one_that_cannot_be_loaded_is_told_at_the_start() -> None:
    stands = Stands(2)
    stands.refuse = ModelError("No weights.")
    with pytest.raises(ModelError, match="No weights"):
        Replicas(stands, 10)  # type: ignore[arg-type]
    assert stands.closed


def test_a_cancelled_request_leaves_the_queue_and_the_replicas(
    start: Callable[..., tuple[Replicas, Stands]],
) -> None:
    replicas, stands = start(1, budget=1000, max_tokens=5000)
    (stand,) = stands.started
    stand.gate.clear()
    future = replicas.submit(group(*range(100), length=100))
    until(lambda: bool(stand.batches))
    with pytest.raises(EngineBusy):
        replicas.submit(group(1))
    assert future.cancel()
    assert (replicas.load().waiting, replicas.load().waiting_tokens) == (0, 0)
    after = replicas.submit(group(3))
    until(lambda: bool(stand.dropped))
    stand.gate.set()
    assert after.result(30) == [3.0]
    with pytest.raises(CancelledError):
        future.result(0)
    until(lambda: not replicas._queue._jobs)  # else it is kept for nobody


def test_closing_finishes_what_replicas_have_and_fails_the_rest(
    start: Callable[..., tuple[Replicas, Stands]],
) -> None:
    replicas, stands = start(1, budget=1000)
    (stand,) = stands.started
    stand.gate.clear()
    first = replicas.submit(group(1))
    until(lambda: bool(stand.batches))
    rest = replicas.submit(group(2))
    closing = threading.Thread(target=replicas.close)
    closing.start()
    with pytest.raises(EngineClosed):
        rest.result(30)
    stand.gate.set()
    assert first.result(30) == [1.0]
    closing.join(30)
    with pytest.raises(EngineClosed):
        replicas.submit(group(3))
    assert replicas.failure is None


def test_a_replica_that_computes_for_long_gives_signs_of_life_to_the_end(
    start: Callable[..., tuple[Replicas, Stands]],
) -> None:
    replicas, stands = start(1, timeout=0.3)
    (stand,) = stands.started
    stand.signs = 0
    stand.gate.clear()
    future = replicas.submit(group(1))
    until(lambda: (stand.signs or 0) > 1)
    closing = threading.Thread(target=replicas.close)
    closing.start()
    until(lambda: replicas._closed)
    seen = stand.signs
    until(lambda: (stand.signs or 0) > seen + 2 * LOOKS)
    assert not stand.dies
    stand.gate.set()
    assert future.result(30) == [1.0]
    closing.join(30)


def test_a_replica_that_starts_while_the_engine_ends_is_ended(start: Callable[..., tuple[Replicas, Stands]]) -> None:
    replicas, stands = start(1)
    begun, may_go_on = threading.Event(), threading.Event()

    def start_late(number: int) -> Stand:
        begun.set()
        assert may_go_on.wait(30)
        return Stands.start(stands, number)

    stands.start = start_late  # type: ignore[method-assign]
    stands.started[0].kill()
    assert begun.wait(30)
    closing = threading.Thread(target=replicas.close)
    closing.start()
    assert replicas._stop.wait(30)
    may_go_on.set()
    closing.join(30)
    _, late = stands.started
    assert late.dies
    assert not any(thread.is_alive() for thread in replicas._lives)


def test_a_callback_that_fails_fails_its_own_request(start: Callable[..., tuple[Replicas, Stands]]) -> None:
    replicas, _ = start()

    def broken(count: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replicas.submit(group(1), broken).result(30)
    assert replicas.submit(group(2)).result(30) == [2.0]


@given(
    st.integers(0, 300),
    st.lists(st.integers(1, 400), min_size=1, max_size=200),
    st.integers(1000, 9000),
    st.integers(1, 8),
)
def test_a_request_is_cut_into_as_many_batches_for_each_replica(
    prefix: int, lengths: list[int], budget: int, replicas: int
) -> None:
    suffixes = tuple(Segment([0] * length) for length in lengths)
    job = Job(PromptGroup(Segment([0] * prefix), suffixes, (False,) * len(suffixes)), Future())
    batcher = Batcher(budget)
    batcher.add(job)
    longest = prefix + max(lengths)
    batcher.budget = fair_budget(job.cost, longest, budget, replicas)
    whole, most = job.cost, replicas * math.ceil(job.cost / (replicas * max(budget - longest, 1)))
    batches = []
    while batch := batcher.next_batch():
        batches.append(sum(piece.cost for piece in batch))
    assert len(batches) <= most
    assert max(batches) <= budget
    assert min(batches[:-1], default=whole) >= min(whole, 512) - longest
