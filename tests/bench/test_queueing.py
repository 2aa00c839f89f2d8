"""The model of latencies against closed forms, and against the real queue under a virtual clock."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.bench.clock import BLOCK, Clock
from rerankd.bench.load import Traffic
from rerankd.bench.queueing import (
    ONE_SERVER,
    Latencies,
    Replica,
    Requests,
    latencies,
    most_requests,
    rate_at,
    replicas_needed,
)
from rerankd.bench.queueing import (
    simulate as model,
)
from tests.bench.simulation import arrivals, documents, simulate, spells

CPU = Replica(fixed=0.002, per_token=1 / 5000, most=8192, outside=0.003)
GPU = Replica(fixed=0.01, per_token=1 / 100_000, most=16384, outside=0.005)
SHORT = Requests([300], longest=100)
LONG = Requests([4000], longest=200)
MIXED = Requests([50, 100, 200, 300, 400, 800, 1600], longest=100)
COUNT = 3000


NOISY = replace(CPU, trace=spells(0))
CROWDED = replace(CPU, crowded=1.5)
BOTH = replace(CPU, trace=spells(1), crowded=1.3)


def found(replica: Replica, requests: Requests, load: float, replicas: int) -> Latencies:
    answer = latencies(replica, requests, load * replicas * most_requests(replica, requests), replicas)
    assert answer is not None
    return answer


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_batches_of_one_request_are_the_queue_of_pollaczek_and_khinchine(load: float) -> None:
    """Equal service: a request waits load / (2 (1 - load)) services on average."""
    one = Replica(fixed=0.01, per_token=0.0001, most=100)
    took = one.seconds(100)
    answer = found(one, Requests([100], 100), load, 1)
    assert answer.busy == pytest.approx(load, rel=1e-2)
    assert answer.mean == pytest.approx(took * (1 + load / (2 * (1 - load))), rel=0.05)


def test_a_lonely_request_takes_its_own_time() -> None:
    nearly_none = latencies(CPU, MIXED, 1e-6, 1)
    assert nearly_none is not None
    assert nearly_none.percentile(1) == pytest.approx(CPU.outside + CPU.seconds(50), rel=0.05)
    assert nearly_none.percentile(99) == pytest.approx(CPU.outside + CPU.seconds(1600), rel=0.01)
    assert nearly_none.mean == pytest.approx(CPU.outside + CPU.seconds(MIXED.mean), rel=0.02)


def test_a_lonely_long_request_is_computed_by_all_replicas() -> None:
    """As `fair_budget` cuts: each has its part, and a document that begins the next."""
    alone = latencies(CPU, LONG, 1e-6, 4)
    assert alone is not None
    assert alone.percentile(50) == pytest.approx(CPU.outside + CPU.seconds(4000 / 4 + 200), rel=0.01)


@pytest.mark.parametrize(
    ("replica", "requests", "load", "replicas"),
    [
        (CPU, LONG, 0.7, 1),
        (GPU, SHORT, 0.8, 1),
        (CPU, LONG, 0.7, 4),
        (GPU, SHORT, 0.7, 2),
        (CPU, SHORT, 0.8, 6),
        (CROWDED, SHORT, 0.7, 1),
        (CROWDED, SHORT, 0.7, 2),
        (CROWDED, LONG, 0.5, 4),
        (NOISY, SHORT, 0.3, 2),
        (NOISY, SHORT, 0.7, 1),
        (NOISY, LONG, 0.5, 2),
        (BOTH, SHORT, 0.5, 2),
    ],
)
def test_the_model_is_near_the_queue_itself(replica: Replica, requests: Requests, load: float, replicas: int) -> None:
    """The same arrivals, and other spells of the same machine."""
    rate = load * replicas * most_requests(replica, requests)
    comes = arrivals(requests, rate, COUNT, seed=1)
    seen = simulate(replica, requests.longest, comes, replicas, seed=1)
    said = model(replica, requests, [now for now, _ in comes], replicas, seed=2)
    assert said.busy == pytest.approx(seen.busy, rel=0.1)
    for percent in (50, 90, 99):
        assert said.percentile(percent) == pytest.approx(seen.percentile(percent), rel=0.25), percent


BUSY = replace(CPU, outside=0.02)
"""So that the work outside the batches is a quarter of all."""


@pytest.mark.parametrize(
    ("replica", "requests", "load", "replicas", "threads", "cores"),
    [
        (BUSY, SHORT, 0.5, 2, 1, 2),
        (BUSY, SHORT, 0.8, 2, 1, 2),
        (BUSY, SHORT, 0.8, 2, 1, 3),
        (BUSY, LONG, 0.7, 3, 1, 2),
        (BOTH, SHORT, 0.7, 2, 1, 2),
        (BUSY, SHORT, 0.3, 1, 2, 2),
        (BUSY, SHORT, 0.8, 1, 8, 8),
        (BUSY, SHORT, 0.8, 1, 7, 8),
        (BOTH, LONG, 0.5, 1, 4, 4),
        (BUSY, SHORT, 0.7, 2, 4, 8),
    ],
)
def test_the_model_is_near_the_queue_itself_where_cores_are_few(
    replica: Replica, requests: Requests, load: float, replicas: int, threads: int, cores: int
) -> None:
    replica = replace(replica, threads=threads, cores=cores / replicas)
    rate = load * most_requests(replica, requests, replicas)
    comes = arrivals(requests, rate, COUNT, seed=1)
    seen = simulate(replica, requests.longest, comes, replicas, 1)
    said = model(replica, requests, [now for now, _ in comes], replicas, 2)
    assert said.busy == pytest.approx(seen.busy, rel=0.1)
    for percent in (50, 90, 99):
        assert said.percentile(percent) == pytest.approx(seen.percentile(percent), rel=0.25), percent


def test_few_cores_make_requests_slower_and_many_do_not() -> None:
    each = [replace(BUSY, cores=cores / 2) for cores in (2, 3, 9, math.inf)]
    comes = Traffic(0.8 * most_requests(each[0], SHORT, 2)).departures(COUNT)
    two, three, more, own = (model(one, SHORT, comes, 2).percentile(50) for one in each)
    assert own < three == more < two / 1.5, "three cores are enough for two replicas and the server's own process"


def test_the_network_is_in_no_ones_way() -> None:
    """20 ms to a server and back, of requests that come every 10 ms."""
    busy = replace(CPU, cores=2, threads=2)
    comes = [0.07 * number for number in range(100)]
    near, far = (model(replace(busy, network=seconds), SHORT, comes, 1).seconds for seconds in (0.0, 0.02))
    assert far == pytest.approx(near + 0.02)


@pytest.mark.parametrize(
    ("replicas", "threads", "cores"),
    [(2, 1, 1), (2, 1, 2), (2, 1, 3), (2, 1, math.inf), (1, 2, 2), (1, 4, 4), (1, 4, 5), (1, 4, 2), (3, 2, 6)],
)
def test_the_highest_rate_is_what_cores_and_replicas_can_do(replicas: int, threads: int, cores: float) -> None:
    """At more than that the last request waits for as long as the work of all takes."""
    replica = replace(BUSY, outside=0.01, threads=threads, cores=cores / replicas)
    most = most_requests(replica, SHORT, replicas)
    count = 4000
    found = model(replica, SHORT, Traffic(2 * most).departures(count), replicas)
    # Batches are full then, but the first and the last.
    assert count / (found.seconds[-1] + count / (2 * most)) == pytest.approx(most, rel=0.05)


def test_slow_spells_make_the_slowest_requests_slower_than_the_mean_speed_says() -> None:
    """And so does that they last: the same times in random order are over before a queue has grown."""
    rate = 0.7 * 2 * most_requests(NOISY, SHORT)
    mean = replace(NOISY, trace=[(NOISY.slower, 1.0)])
    pieces = list(NOISY.trace)
    Random(0).shuffle(pieces)
    p99 = []
    for one in (mean, replace(NOISY, trace=pieces), NOISY):
        found = latencies(one, SHORT, rate, 2)
        assert found is not None
        p99.append(found.percentile(99))
    assert p99[0] < p99[1] < p99[2] / 1.5


def test_a_steady_clock_is_like_any_other() -> None:
    clock = Clock(((0.5, 0.25),), Random(0))
    assert clock.end(10.0, 3.0) == pytest.approx(16.0)
    assert clock.end(1.0, 0.1) == pytest.approx(1.2), "an earlier time may be asked for later"


def test_a_clock_goes_as_fast_as_the_machine_went() -> None:
    """Two seconds of work in one, and half of one in the next; from any place, in the order of the trace."""
    trace = ((1.0, 2.0), (1.0, 0.5))
    found = {Clock(trace, Random(seed)).end(0.0, 2.25) for seed in range(20)}
    assert sorted(found) == pytest.approx([1.5, 1 + 1.75 / 2])
    assert Clock(trace, Random(0)).end(0, 25.0) == pytest.approx(20.0, abs=1)


def test_a_block_of_the_trace_stays_whole() -> None:
    """So that what lasts for seconds on the machine does so in the model."""
    trace = [(1.0, 1.0 + number) for number in range(100)]
    clock = Clock(trace, Random(3))
    works = []
    for second in range(60):
        low, high = 0.0, 200.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if clock.end(second, middle) < second + 1 else (low, middle)
        works.append(round(low))
    steps = [after - before == 1 or (before, after) == (100, 1) for before, after in pairwise(works)]
    assert sum(not one for one in steps) == len(works) // BLOCK - 1, "one jump after each block"


@settings(max_examples=25)
@given(st.integers(0, 99), st.floats(0, 30), st.floats(0, 5), st.floats(0, 5))
def test_a_clock_does_work_in_parts_as_in_one(seed: int, start: float, first: float, second: float) -> None:
    clock = Clock(spells(0), Random(seed))
    assert clock.end(clock.end(start, first), second) == pytest.approx(clock.end(start, first + second))
    assert clock.end(start, first) >= start


replicas_made = st.builds(
    Replica, st.floats(0, 0.05), st.floats(1e-6, 1e-3), st.sampled_from([512, 4096, 8192]), st.floats(0, 0.01)
)
requests_made = st.builds(Requests, st.lists(st.integers(20, 3000), min_size=1, max_size=5), st.just(500))


@settings(max_examples=6, derandomize=True)
@given(replicas_made, requests_made, st.floats(0.05, 0.9), st.integers(1, 6))
def test_the_model_keeps_its_promises(replica: Replica, requests: Requests, load: float, count: int) -> None:
    rate = load * count * most_requests(replica, requests)
    said, more, less = (
        latencies(replica, requests, rate * part, count + added) for part, added in ((1, 0), (1, 1), (0.7, 0))
    )
    assert said is not None
    assert more is not None
    assert less is not None
    assert 0 < said.busy < 1
    assert said.seconds[0] >= (replica.outside + replica.fixed) * (1 - 1e-9)
    for better in (more, less):
        assert better.busy <= said.busy * 1.01
        assert better.mean <= said.mean * 1.05
    assert latencies(replica, requests, count * most_requests(replica, requests), count) is None


@settings(max_examples=15)
@given(replicas_made, requests_made, st.floats(0.05, 0.9), st.integers(1, 6), st.integers(0, 99))
def test_the_simulation_keeps_its_promises(
    replica: Replica, requests: Requests, load: float, count: int, seed: int
) -> None:
    """Nothing is lost or computed twice, nothing is answered before it can be, and more replicas are never worse."""
    comes = arrivals(requests, load * count * most_requests(replica, requests), 300, seed)
    seen, more = (simulate(replica, requests.longest, comes, one) for one in (count, count + 1))
    for one in (seen, more):
        assert one.computed == sum(len(documents(tokens, requests.longest)) for _, tokens in comes)
        assert 0 < one.busy < 1
        for latency, (_, tokens) in zip(one.latencies, comes, strict=True):
            least = replica.outside + replica.seconds(tokens / (count + 1))
            assert latency >= least * (1 - 1e-9)
    assert more.mean <= seen.mean * 1.05


@pytest.mark.parametrize("rate", [20.0, 100.0])
def test_the_fewest_replicas_that_are_enough(rate: float) -> None:
    count = replicas_needed(CPU, SHORT, rate, 99, 0.2)
    assert count is not None
    assert count >= rate / most_requests(CPU, SHORT)
    enough, short = (latencies(CPU, SHORT, rate, one) for one in (count, count - 1))
    assert enough is not None
    assert enough.percentile(99) <= 0.2
    assert short is None or short.percentile(99) > 0.2


def test_no_server_has_any_number_of_replicas() -> None:
    assert replicas_needed(CPU, SHORT, 1e5, 99, 0.2) is None
    assert 1e5 / most_requests(CPU, SHORT) > ONE_SERVER


def test_no_number_of_replicas_makes_a_request_faster_than_alone() -> None:
    assert replicas_needed(CPU, SHORT, 10.0, 99, 0.05) is None
    assert rate_at(CPU, SHORT, 1, 99, 0.05) == 0


def test_the_rate_at_which_requests_take_so_long() -> None:
    rate = rate_at(CPU, SHORT, 2, 99, 0.3)
    below, above = (latencies(CPU, SHORT, rate * part, 2) for part in (0.99, 1.02))
    assert below is not None
    assert below.percentile(99) <= 0.3
    assert above is None or above.percentile(99) > 0.3
    assert math.isfinite(rate)
