"""`rerankd bench capacity`: the fit, the plan, and the command against a real server."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.capacity import Rounds, Row, more_outside
from typer.testing import CliRunner, Result

from rerankd.bench.capacity import Counts, round_trip
from rerankd.bench.fitting import crowding, fit, fitted
from rerankd.bench.load import Outcome
from rerankd.bench.measured import Alone, Level, Measured, Work
from rerankd.bench.planning import Observed, Plan, Wanted, Way, table
from rerankd.bench.queueing import Replica, Requests, latencies, most_requests
from rerankd.bench.rounds import Spread
from rerankd.bench.samples import Sample
from rerankd.cli.main import _rerankd
from rerankd.core import RerankdError
from tests.bench.fake_server import Fake
from tests.bench.simulation import arrivals, simulate, spells

MACHINE = Replica(0.0, 0.0, 8192)
MEASURED = Measured(
    model="m",
    replica=Replica(0.002, 1 / 5000, 8192, outside=0.003),
    requests=Requests([300], 100),
    replicas=1,
    documents=3.0,
    sent=2000,
    received=500,
)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(_rerankd(), ["bench", "capacity", *map(str, arguments)])


def test_the_fit_finds_what_batches_take() -> None:
    shapes = [(1, 100), (1, 300), (4, 4000), (7, 50_000)]
    works = [Work(batches, tokens, 0.004 * batches + tokens / 8000) for batches, tokens in shapes]
    found = fit(works, MACHINE)
    assert (found.fixed, found.per_token, found.most) == (pytest.approx(0.004), pytest.approx(1 / 8000), 8192)


@pytest.mark.parametrize("shapes", [[(1, 100), (1, 100)], [(2, 600)], [(10, 50), (1, 5000)]])
def test_a_fit_is_never_below_nothing(shapes: list[tuple[int, int]]) -> None:
    """Batches that are all alike, and small ones that took less than their tokens' part."""
    works = [Work(batches, tokens, tokens / 8000) for batches, tokens in shapes]
    found = fit(works, MACHINE)
    assert found.fixed == pytest.approx(0, abs=1e-9)
    assert found.per_token == pytest.approx(1 / 8000)
    less = fit([Work(10, 50, 0.001), Work(1, 5000, 5000 / 8000)], MACHINE)
    assert less.fixed == 0
    assert less.per_token > 0


def alone(documents: int, times: float = 1.0, batches: int = 1, outside: float = 0.003) -> Alone:
    """A request of documents of 100 tokens, on a machine that is so many times as slow as usual."""
    work = Work(batches, 100 * documents, times * (0.004 * batches + 100 * documents / 8000))
    latency = work.seconds / batches + times * outside
    return Alone(documents / 8, work, Outcome(Sample("q", ["d"] * 8), latency=latency))


def closed(clients: int, answered: float, batches: float, tokens: float, times: float) -> tuple[Level, Work]:
    """Requests at a time, in batches that take so many times as long, and 0.9 of the time."""
    work = Work(batches, tokens, times * (0.004 * batches + tokens / 8000))
    return Level(clients, None, 100, answered, 0.9, 0.1, 0.2), work


def test_a_replica_is_found_by_its_requests() -> None:
    """Of usual speed alone, and 1.3 times as slow beside others; where it never rests, the pauses are its own too."""
    singles = [alone(documents) for _ in range(5) for documents in (1, 2, 4, 8)]
    crowd = [closed(2, 20.0, 50, 40_000, 1.3), closed(4, 40.0, 30, 40_000, 1.3), closed(8, 70.0, 20, 80_000, 0.9 * 1.3)]
    found = fitted(singles, crowd, 1, MACHINE)
    assert (found.fixed, found.per_token) == (pytest.approx(0.004), pytest.approx(1 / 8000))
    assert (found.outside, found.crowded, found.most) == (pytest.approx(0.003), pytest.approx(1.3), 8192)
    assert len(found.trace) == 20
    assert found.slower == pytest.approx(1, rel=1e-3)
    assert fitted(singles, crowd, 2, MACHINE).crowded == pytest.approx(1.3), "two for each of two replicas"
    quick = fitted(singles, [closed(2, 20.0, 50, 40_000, 0.8)], 1, MACHINE)
    assert quick.crowded == 1, "no replica is faster in a crowd; the machine was"


@pytest.mark.parametrize(("threads", "cores", "seconds"), [(2, 2, 0.003), (2, 3, 0.0), (4, 4, 0.003), (1, 1, 0.003)])
def test_time_that_requests_took_from_a_replica_is_not_its_batches(threads: int, cores: int, seconds: float) -> None:
    """Each of 100 requests spends 3 ms outside the batches, which are computed for 0.9 of the time."""
    singles = [alone(documents) for _ in range(5) for documents in (1, 2, 4, 8)]
    crowd = []
    for clients, batches, tokens, times in ((2, 50, 40_000, 1.3), (4, 30, 80_000, 1.3), (8, 10, 80_000, 1.3 * 1.1)):
        level, work = closed(clients, 1.0 + clients, batches, tokens, times)
        crowd.append((level, replace(work, seconds=work.seconds + 0.9 * 100 * seconds)))
    machine = replace(MACHINE, threads=threads, cores=cores)
    found = fitted(singles, [(replace(level, busy=0.9), work) for level, work in crowd], 1, machine)
    assert found.crowded == pytest.approx(1.3, rel=0.02)
    assert found.sizes[-1] == (8000, pytest.approx(1.1 / 0.9, rel=0.05)), "the last never rests"
    assert (found.threads, found.cores) == (threads, cores)


def test_large_batches_take_longer_than_their_tokens_say() -> None:
    """1.3 times as long in a crowd, and with 4,000 and 8,000 tokens 1.1 and 1.2 times that."""
    singles = [alone(documents) for _ in range(5) for documents in (1, 2, 4, 8)]
    levels = ((2, 60, 48_000, 1.3), (4, 12, 48_000, 1.3 * 1.1), (8, 6, 48_000, 0.9 * 1.3 * 1.2))
    found = fitted(singles, [closed(clients, 1.0 + clients, *work) for clients, *work in levels], 1, MACHINE)

    def usual(tokens: float) -> float:
        return 0.004 + tokens / 8000

    assert found.crowded == pytest.approx(1.3)
    assert [tokens for tokens, _ in found.sizes] == [800, 4000, 8000]
    for tokens, times in ((400, 1.0), (800, 1.0), (4000, 1.1), (6000, 1.15), (8000, 1.2), (9000, 1.2)):
        assert found.seconds(tokens) * found.slower == pytest.approx(times * usual(tokens), rel=0.02), tokens
    full = 8192 / (1.3 * 1.2 * usual(8192)) / 800
    assert most_requests(found, Requests([800], 100)) == pytest.approx(full, rel=0.02)


def test_the_speeds_of_a_replica_are_in_order_of_time() -> None:
    times = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    singles = [alone(documents, one) for one, documents in zip(times, [1, 2, 4, 8] * 3, strict=True)]
    found = fitted(singles, [closed(2, 50.0, 50, 40_000, 2.0 * 0.9)], 1, MACHINE)
    speeds = [took / said for took, said in found.trace]
    assert [one / speeds[0] for one in speeds] == pytest.approx(times, rel=0.02)
    assert [took for took, _ in found.trace] == pytest.approx([one.outcome.latency for one in singles], abs=1e-6)
    assert found.slowest(90) / found.slowest(5) == pytest.approx(3, rel=0.02)


def test_a_size_of_which_the_figures_are_wrong_does_not_look_like_another_speed() -> None:
    """Half of the documents take three times as long as their tokens say."""
    singles = [alone(documents, 3.0 if documents == 4 else 1.0) for _ in range(5) for documents in (1, 2, 4, 8)]
    found = fitted(singles, [closed(2, 50.0, 50, 40_000, 0.9)], 1, MACHINE)
    assert found.slowest(1) == pytest.approx(found.slowest(99), rel=1e-3)
    assert found.slower == pytest.approx(singles[3].outcome.latency / found.trace[3][1], rel=1e-3)


def test_a_request_that_two_replicas_compute_says_as_much_of_their_speed() -> None:
    singles = [alone(8, batches=2) for _ in range(9)]
    found = fitted(singles, [closed(4, 50.0, 50, 20_000, 0.9)], 2, MACHINE)
    assert found.outside == pytest.approx(0.003)
    assert found.slower == pytest.approx(1, rel=0.05)


def test_a_crowd_is_compared_with_requests_alone() -> None:
    replica = Replica(0.0, 1e-3, 100)
    works = [Work(1, 100, 0.2), Work(1, 300, 0.6)]
    assert crowding(replica, works, [Work(1, 100, 0.3), Work(2, 200, 0.6)]) == pytest.approx(1.5)
    assert crowding(replica, works, [Work(1, 100, 0.1)]) == 1


def test_a_request_without_a_batch_is_left_out() -> None:
    """It was answered before the server counted its batch."""
    replica = Replica(0.004, 1e-3, 100)
    assert crowding(replica, [Work(0, 0, 0.0), Work(1, 100, 0.104)], [Work(1, 100, 0.208)]) == pytest.approx(2)


def test_a_server_of_several_replicas_is_compared_where_one_computes() -> None:
    """A request that two replicas compute at the same time does not show how long it was outside."""
    here = [alone(documents) for _ in range(5) for documents in (1, 2, 4, 8)]
    there = [
        alone(documents, batches=1 + documents // 4, outside=0.004) for _ in range(5) for documents in (1, 2, 4, 8)
    ]
    assert more_outside(there, here) == pytest.approx(0.001)
    assert more_outside([alone(1, outside=0.005), *there], here) == pytest.approx(0.001)


NOISY = replace(MEASURED.replica, trace=spells(0), crowded=1.2)


def measured_of(replica: Replica, shares: tuple[float, ...] = (0.3, 0.85), rounds: int = 3) -> Rounds:
    """Two such replicas, as the check measures them: an event simulation of the real queue in their place."""
    highest = 2 * most_requests(NOISY, MEASURED.requests)
    levels: dict[float, list[Level]] = {}
    for share in shares:
        rate = share * highest
        for seed in range(rounds):
            comes = arrivals(MEASURED.requests, rate, 600, seed)
            seen = simulate(replica, 100, comes, 2, seed)
            p50, p99 = seen.percentile(50), seen.percentile(99)
            levels.setdefault(share, []).append(Level(None, rate, 600, rate, seen.busy, p50, p99))
    return Rounds(MEASURED, NOISY, 2, [0.9 * highest, highest, 1.1 * highest], levels)


def test_the_check_agrees_with_a_simulation_of_the_same_machine() -> None:
    rows = [*measured_of(NOISY).rows()]
    assert [row.what.split(": ")[-1] for row in rows[1:]] == ["p50, ms", "p99, ms"] * 2
    assert [row.agrees for row in rows] == [True] * 5, "\n".join(map(str, rows))


def test_the_check_sees_a_model_that_is_wrong() -> None:
    """Of a machine that is 1.6 times as slow as the one that was measured, and of another highest rate."""
    slow = replace(NOISY, trace=[(1.6 * took, said) for took, said in NOISY.trace])
    found = measured_of(slow, (0.5,))
    assert [row.agrees for row in found.rows()] == [True, False, False]
    for times, agrees in ((0.7, False), (0.85, True), (1.2, True), (1.4, False)):
        most = next(replace(found, most=[times * one for one in found.most]).rows())
        assert most.agrees is agrees
        assert ("| agrees |" in str(most)) is agrees


def test_the_medians_of_a_row_decide() -> None:
    row = Row("p99, ms", Spread(0.1, 0.01, 1.0), [0.05, 0.14, 9.0], 1.5, 1000)
    assert row.agrees
    assert str(row) == "| p99, ms | 100.0 (10.0 to 1000.0) | 140.0 (50.0 to 9000.0) | 1.40 | agrees |"
    assert not replace(row, measured=[0.06, 0.06, 0.1]).agrees


def test_a_table_has_the_speeds_and_the_models_latencies() -> None:
    level = Level(clients=None, rate=10.0, requests=50, answered=10.0, busy=0.5, p50=0.01, p99=0.02)
    sizes = ((300.0, 1.0), (2000.0, 1.1), (4000.0, 1.25))
    text = table(replace(MEASURED, replica=replace(NOISY, sizes=sizes), levels=[level]))
    assert "take so many times as long as that: 1.10 (2000 tokens), 1.25 (4000 tokens)\n" in text
    assert "requests alone took 0.9" in text
    assert "1.20 times as long, where all replicas compute" in text
    assert re.search(r"^10\.00 +10\.0 +20\.0 +50% +\d+\.\d +\d+\.\d +\d+%   \d+\.\d to \d+\.\d$", text, re.M)


METRICS = """# HELP rerankd_batches_total Batches computed.
rerankd_batches_total 7.0
rerankd_batch_tokens_total 900.0
rerankd_batch_seconds_total 0.5
rerankd_max_batch_tokens 8192.0
rerankd_threads 4.0
rerankd_cores 6.0
"""


def test_a_servers_counts_are_read() -> None:
    found = Counts.of(METRICS, "url")
    assert found == Counts(Work(7, 900, 0.5), 1, 8192, 4, 6.0)
    assert found.replica(0.001) == Replica(0.0, 0.0, 8192, network=0.001, threads=4, cores=6.0)
    replicas = 'rerankd_replica_up{replica="0"} 1.0\nrerankd_replica_up{replica="1"} 1.0\n'
    found = Counts.of(METRICS + replicas, "url")
    assert found.replicas == 2
    assert (found.replica(0).threads, found.replica(0).cores) == (2, 3.0)


@pytest.mark.parametrize(
    "text",
    ["", "Not Found", METRICS.replace(" 7.0", '{model_name="a"} 7.0') + 'rerankd_batches_total{model_name="b"} 1'],
)
def test_another_servers_counts_are_refused(text: str) -> None:
    with pytest.raises(RerankdError, match="url: these are not the metrics of a rerankd"):
        Counts.of(text, "url")


def test_the_way_to_a_server_is_measured_by_connections(fake: Fake) -> None:
    assert 0 < asyncio.run(round_trip(f"{fake.url}/v1/rerank")) < 1
    assert asyncio.run(round_trip("http://127.0.0.1:1/v1/rerank")) == 0


def test_a_plan_holds_what_it_says() -> None:
    plan = Plan.of(MEASURED, Wanted(100.0, 0.25), 2)
    one, apart = plan.one_queue, plan.apart
    assert one is not None
    assert (one.servers, apart.replicas) == (1, 2)
    assert one.p99 <= 0.25 >= apart.p99
    assert one.replicas <= apart.servers * apart.replicas, "replicas that share a queue are never more"
    short = latencies(MEASURED.replica, MEASURED.requests, 100 / (apart.servers - 1), 2)
    assert short is None or short.percentile(99) > 0.2
    assert plan.cores == pytest.approx(0.3)
    assert "more than a process has" not in str(plan)
    assert plan.bits == 8 * 100 * 2500


def test_a_plan_for_a_hundred_thousand_requests() -> None:
    plan = Plan.of(MEASURED, Wanted(1e5, 0.25), 3)
    least = 1e5 * 300 / 5000
    assert plan.one_queue is None
    assert "One server is not enough, of 64 replicas or fewer." in str(plan)
    assert least < plan.apart.servers * 3 < 1.6 * least


def test_a_plan_for_a_machine_with_slow_spells_needs_more() -> None:
    """Than one for a machine that is always as fast as that one is on average."""
    even = replace(MEASURED, replica=replace(NOISY, trace=[(NOISY.slower, 1.0)]))
    wanted = Wanted(1000.0, 0.4)
    varies, steady = (Plan.of(one, wanted, 2).apart for one in (replace(MEASURED, replica=NOISY), even))
    assert varies.servers > 1.3 * steady.servers
    assert varies.p99 <= 0.4 >= steady.p99


def test_a_plan_says_what_the_measured_latencies_need() -> None:
    """The highest rate that kept the p99 counts, and closed loops, whose rate is an answer, do not."""
    shape = {"requests": 100, "busy": 0.5, "p50": 0.01}
    levels = [
        Level(clients=8, rate=None, answered=90.0, p99=0.01, **shape),
        Level(clients=None, rate=20.0, answered=20.0, p99=0.1, **shape),
        Level(clients=None, rate=30.0, answered=30.0, p99=0.25, **shape),
        Level(clients=None, rate=40.0, answered=40.0, p99=0.26, **shape),
    ]
    measured = replace(MEASURED, levels=levels, replicas=2)
    plan = Plan.of(measured, Wanted(100.0, 0.25), 2)
    assert plan.observed == Observed(servers=4, replicas=2, rate=30.0, p99=0.25)
    assert "8 replicas: 4 x 2, 30 requests/s each, p99 250.0 ms (as measured)" in str(plan)
    none = Plan.of(measured, Wanted(100.0, 0.09), 2)
    assert none.observed is None
    assert "No rate that was measured had a p99 of 90 ms or less." in str(none)
    assert json.loads(json.dumps(plan.json()))["observed"]["servers"] == 4


def test_a_server_whose_own_process_has_too_much_to_do_is_told() -> None:
    way = Way(servers=4, replicas=8, busy=0.5, mean=0.1, p50=0.1, p99=0.2)
    for cores, told in ((4.0, False), (4.4, True)):
        plan = Plan(Wanted(1000.0, 0.5), way, way, None, cores, bits=1e6)
        assert ("take fewer --replicas-per-server" in str(plan)) is told


def test_what_no_replicas_can_do_is_refused() -> None:
    with pytest.raises(RerankdError, match="--p99-ms: more than 1 % of the requests take longer than 40 ms"):
        Plan.of(MEASURED, Wanted(10.0, 0.04), 1)


def test_a_file_is_read_again(tmp_path: Path) -> None:
    file, again = tmp_path / "measured.json", tmp_path / "again.json"
    kept = replace(MEASURED, replica=replace(MEASURED.replica, crowded=1.5, sizes=((9.0, 1.0), (99.0, 1.2))))
    kept = replace(kept, replica=replace(kept.replica, trace=((0.02, 0.01), (0.01, 0.02))))
    file.write_text(json.dumps(kept.json()))
    flags = ("--measured", file, "--request-rate", 50, "--p99-ms", 300, "--replicas-per-server", 2)
    result = bench(*flags, "--save-result", again)
    assert result.exit_code == 0, result.output
    saved = json.loads(again.read_text())
    plan = saved.pop("plan")
    assert Measured.read(saved) == kept
    assert plan["apart"]["replicas"] == 2
    assert re.search(r"For 50 requests/s of which 99 % take 300 ms at most:", result.stdout)
    assert f"{plan['one_queue']['replicas']} replicas: 1 x " in result.stdout
    assert bench("--measured", again).exit_code == 0, "a file with a plan is one too"


def test_a_server_is_measured(bert_checkpoint: Path, tmp_path: Path) -> None:
    """Of two replicas, by flags behind `--`."""
    file = tmp_path / "new" / "measured.json"
    result = bench(
        *(bert_checkpoint, "--random-input-len", 32, "--random-batch-size", 4, "--seconds", 0.1),
        *("--save-result", file, "--", "--device", "cpu", "--dtype", "float32", "-dp", 2, "--num-threads", 1),
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"full batches +\d+ tokens/s", result.stdout)
    saved: dict[str, Any] = json.loads(file.read_text())
    found = Measured.read(saved)
    assert (found.replicas, found.documents, found.replica.most) == (2, 4, 8192)
    assert found.replica.fixed >= 0 < found.replica.per_token
    assert found.replica.outside > 0
    assert found.replica.crowded >= 1
    assert len(found.replica.trace) >= 8 * 3
    assert all(took > 0 < said for took, said in found.replica.trace)
    assert all(4 * 20 < tokens < 4 * 40 for tokens in found.requests.tokens), "four pairs of 32 tokens or so"
    assert found.sent > 4 * 32 < found.received
    closed, opened = ([one for one in found.levels if (one.rate is None) is way] for way in (True, False))
    assert [one.clients for one in closed[:3]] == [2, 4, 8]
    assert len(opened) == 4
    assert all(0 < one.busy <= 1 and 0 < one.p50 <= one.p99 for one in found.levels)


def test_an_impossible_plan_loses_no_measurement(tmp_path: Path) -> None:
    file, kept = tmp_path / "measured.json", tmp_path / "kept.json"
    file.write_text(json.dumps(MEASURED.json()))
    result = bench("--measured", file, "--request-rate", 10, "--p99-ms", 40, "--save-result", kept)
    assert result.exit_code == 1
    assert "--p99-ms: more than 1 %" in result.output
    assert Measured.read(json.loads(kept.read_text())) == MEASURED


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "MODEL, --base-url, --measured: give one of them"),
        (["m", "--base-url", "http://127.0.0.1:1"], "MODEL, --base-url, --measured: give one of them"),
        (["--measured", "absent.json"], "--measured: absent.json cannot be read"),
        (["m", "--request-rate", "5"], "--request-rate and --p99-ms: a plan needs both"),
        (["m", "--request-rate", "0", "--p99-ms", "5"], "--request-rate: 0.0 is not above 0"),
        (["m", "--request-rate", "5", "--p99-ms", "0"], "--p99-ms: 0.0 is not above 0"),
        (["--base-url", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached: "),
    ],
)
def test_bad_flags_name_themselves(flags: list[str], problem: str) -> None:
    result = bench(*flags)
    assert result.exit_code == 1
    assert problem in result.stderr
    assert "Traceback" not in result.output


def test_another_file_is_refused(tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"model": 1}'):
        (tmp_path / "other.json").write_text(content)
        assert (
            "--measured: not a file of `rerankd bench capacity" in bench("--measured", tmp_path / "other.json").stderr
        )


def test_another_server_is_refused(fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"query": "a", "documents": ["b"]}\n')
    result = bench("--base-url", fake.url, "--dataset-name", "jsonl", "--dataset-path", file)
    assert result.exit_code == 1
    assert f"{fake.url}/metrics: these are not the metrics of a rerankd" in result.stderr
