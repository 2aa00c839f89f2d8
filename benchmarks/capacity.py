"""The model of `rerankd bench capacity`, made from one replica, against several replicas that are measured.

usage: python -m benchmarks.capacity MODEL [--replicas 2] [--rounds 6] [--seconds 6] [--workload short] [--output FILE]
       [-- FLAGS]

Servers of one replica of one thread, as many as REPLICAS, and a server of REPLICAS replicas are up at the same time.
`rerankd bench capacity` measures the first. Requests one at a time to the last show how long they are outside the
batches there, for replicas have processes of their own. Then each round measures that one replica again, in turn with
what the model is to say:

- requests one at a time, to the one replica, while nothing else runs: how its speed varies;
- requests one at a time to each server of one replica, at the same time: how much longer batches take while others
  compute, on cores enough for all, since each server does one thing at a time;
- as many requests at a time to the several replicas as they compute: their highest rate;
- requests at random times to the several replicas, at shares of the rate that the model of the one says.

The model's figures are of runs with as many requests as were measured. Beside the median is where 80 % of its runs are,
and for what was measured the range over the rounds. The model holds where the medians agree: rates and p50 within a
factor of 1.25, p99 within 1.5. The command ends with 1 where one does not.

The servers' own processes and the clients run on the same cores as the replicas, and the model's simulation shares the
cores likewise. FLAGS, as `--dtype bfloat16`, are for all servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import program
from rerankd.bench import apis, load
from rerankd.bench.capacity import CROWD, LOADS, Server, measure
from rerankd.bench.fitting import crowding, trace
from rerankd.bench.load import Traffic
from rerankd.bench.measured import Alone, Level, Measured
from rerankd.bench.planning import Predicted, table
from rerankd.bench.queueing import Replica, most_requests
from rerankd.bench.rounds import Spread
from rerankd.bench.samples import Sample
from rerankd.bench.started import started
from rerankd.bench.workloads import Corpus, Workload

if TYPE_CHECKING:
    import aiohttp

REQUESTS = 400
NEAR, NEAR_P99 = 1.25, 1.5
"""What is measured is so many times what the model says at most, or the other way round."""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure that the model predicts, and the rounds that were measured."""

    what: str
    predicted: Spread
    measured: Sequence[float]
    near: float
    scale: float = 1.0

    @property
    def ratio(self) -> float:
        """Measured to predicted, by medians."""
        return Spread.of(self.measured).median / self.predicted.median

    @property
    def agrees(self) -> bool:
        return 1 / self.near <= self.ratio <= self.near

    def __str__(self) -> str:
        said, seen = (
            f"{self.scale * one.median:.1f} ({self.scale * one.low:.1f} to {self.scale * one.high:.1f})"
            for one in (self.predicted, Spread.of(self.measured))
        )
        told = "agrees" if self.agrees else f"differs by more than {self.near}"
        return f"| {self.what} | {said} | {seen} | {self.ratio:.2f} | {told} |"


@dataclass(frozen=True, slots=True)
class Rounds:
    """What the rounds have shown.

    one: as `rerankd bench capacity` measured it
    replica: the same one, with the speeds and the crowd of the rounds, in a server of several
    most: requests a second of the several replicas, of each round
    levels: by share of the highest rate, the rounds
    """

    one: Measured
    replica: Replica
    replicas: int
    most: Sequence[float]
    levels: Mapping[float, Sequence[Level]]

    def rows(self) -> Iterator[Row]:
        replica, requests = self.replica, self.one.requests
        highest = most_requests(replica, requests, self.replicas)
        yield Row("requests/s at most", Spread(highest, highest, highest), self.most, NEAR)
        for share, levels in self.levels.items():
            rate, count = levels[0].rate, levels[0].requests
            assert rate is not None
            found = Predicted.of(replica, requests, rate, self.replicas, count)
            what = f"{rate:.1f} requests/s ({share:.0%})"
            yield Row(f"{what}: p50, ms", found.p50, [one.p50 for one in levels], NEAR, 1000)
            yield Row(f"{what}: p99, ms", found.p99, [one.p99 for one in levels], NEAR_P99, 1000)


def more_outside(there: Sequence[Alone], here: Sequence[Alone]) -> float:
    """Seconds that a request spends more outside its batches at one server than at another.

    Only requests of one batch count: of several at a time it is not known how long they took together.
    """

    def outside(alone: Sequence[Alone]) -> dict[float, float]:
        found: dict[float, list[float]] = {}
        for one in alone:
            if one.work.batches == 1:
                found.setdefault(one.part, []).append(one.outside(1))
        return {part: median(seconds) for part, seconds in found.items()}

    ours, theirs = outside(there), outside(here)
    return median([ours[part] - theirs[part] for part in ours.keys() & theirs.keys()])


async def rounds(
    singles: Sequence[str], several: str, target: load.Target, samples: list[Sample], count: int, seconds: float
) -> Rounds:
    """Measure servers at these URLs in turn."""

    def show(line: str) -> None:
        print(f"  {line}", file=sys.stderr)

    def server(session: aiohttp.ClientSession, url: str) -> Server:
        own = replace(target, url=f"{url}{target.api.endpoint}")
        return Server(session, own, f"{url}/metrics", samples, seconds, 0.0, show)

    async with load.connect({}, True) as session:
        ones, other = [server(session, url) for url in singles], server(session, several)
        first = await measure(ones[0].target, ones[0].metrics, samples, seconds, show)
        alone, crowded, most = list[Alone](), list[float](), list[float]()
        levels: dict[float, list[Level]] = {share: [] for share in LOADS}

        async def one_replica() -> Replica:
            alone.extend(await ones[0].one_at_a_time())
            wanted, single = first.levels[0].answered * seconds, Traffic(concurrency=1)
            crowd = await asyncio.gather(*(one.level(wanted, single) for one in ones))
            found, alone_works = first.replica, [one.work for one in alone]
            crowded.append(crowding(found, alone_works, [work for _, work in crowd]))
            there = replace(found, outside=found.outside + found.network + more, network=0.0)
            cores = found.cores / len(ones)
            return replace(there, crowded=median(crowded), cores=cores, trace=trace(found, alone, 1))

        more = more_outside(await other.one_at_a_time(), await ones[0].one_at_a_time())
        replica = await one_replica()
        highest = most_requests(replica, first.requests, len(ones))
        for number in range(count):
            print(f"round {number + 1}:", file=sys.stderr)
            replica = await one_replica()
            full, _ = await other.level(highest * seconds, Traffic(concurrency=CROWD * len(ones)))
            most.append(full.answered)
            show(f"the most of {len(ones)} replicas: {full.answered:.1f} requests/s")
            for share in LOADS if number % 2 == 0 else reversed(LOADS):
                levels[share].append(await other.at(share * highest, seed=number))
        return Rounds(first, replica, len(ones), most, levels)


def main() -> None:
    """See the module."""
    start = time.perf_counter()
    parser = program.parser("capacity", __doc__)
    parser.epilog = "Flags of `rerankd serve` for all servers stand behind --."
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each of some seven measurements of a round")
    parser.add_argument("--workload", type=Workload.parse, default=Workload.parse("short"))
    parser.add_argument("--output", type=Path)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given, flags = parser.parse_args(words[:end]), words[end + 1 :]
    print(f"load of the machine at the start: {os.getloadavg()[0]:.2f}", file=sys.stderr)
    corpus, api = Corpus(0), apis.APIS["vllm-rerank"]
    samples = [Sample(*corpus.request(given.workload)) for _ in range(REQUESTS)]
    own = (given.model, "--served-model-name", given.model, "--num-threads", "1", *flags)
    with ExitStack() as stack:
        singles = [stack.enter_context(started(*own)).url for _ in range(given.replicas)]
        several = stack.enter_context(started(*own, "--data-parallel-size", str(given.replicas))).url
        target = load.Target(api, several, given.model)
        found = asyncio.run(rounds(singles, several, target, samples, given.rounds, given.seconds))
    print(table(found.one))
    print(f"\nBatches take {found.replica.crowded:.2f} times as long while all replicas compute.")
    print(
        f"A request is outside the batches for {1000 * found.replica.outside:.2f} ms in the server of several replicas."
    )
    took = time.perf_counter() - start
    cores = given.replicas * found.replica.cores
    print(f"\n{given.replicas} replicas on {cores:g} cores, {given.rounds} rounds in {took:.0f} s:\n")
    rows = [*found.rows()]
    print("| | predicted (80 % of the runs) | measured (range of the rounds) | ratio | |\n|---|---|---|---|---|")
    print("\n".join(map(str, rows)))
    if given.output:
        given.output.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if not all(row.agrees for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    program.run(main)
