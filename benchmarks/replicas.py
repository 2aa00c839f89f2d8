"""Replicas of one thread each against one process with as many threads, on the same requests in turn.

usage: python -m benchmarks.replicas MODEL [--replicas 2] [--rounds 6] [--seconds 8] [--output FILE.json] [-- FLAGS]

Two servers of the same model are up at the same time: `--data-parallel-size REPLICAS --num-threads 1`, and
`--num-threads REPLICAS`; FLAGS, as `--dtype bfloat16`, are for both. A round sends the same requests, on texts that
neither has seen, to one of them and then to the other, and the next round turns the order round: a machine whose speed
varies slows both. Ratios are of the two halves of a round, their median and range over the rounds; percentiles are of
the requests of all rounds. Requests come from one client that waits for each answer, and from 16.

Run it on a machine that does nothing else. The clients run on the same cores.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from benchmarks import program
from rerankd.bench import apis, load
from rerankd.bench.rounds import Spread
from rerankd.bench.samples import Sample
from rerankd.bench.started import started
from rerankd.bench.workloads import Corpus, Workload
from rerankd.core import RerankdError

NAME = "measured"
WORKLOADS = {"short": Workload("short", 1), "short of 10": Workload("short", 10), "long": Workload("uniform", 32)}
"""One document of 30 words, 10 of them, and 32 of 100 words."""
CLIENTS = (1, 16)
LEAST, MOST = 4, 200
"""Requests of half a round; at least `LEAST` for each client."""


@dataclass(frozen=True, slots=True)
class Half:
    """One server's part of a round: the seconds of each request, and of all."""

    latencies: Sequence[float]
    seconds: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def sent(url: str, samples: Sequence[Sample], clients: int) -> Half:
    """So many clients that send the samples, each with one request in flight. Raises RerankdError where one fails."""
    api = apis.APIS["vllm-rerank"]
    target = load.Target(api, f"{url}{api.endpoint}", NAME)
    outcomes, seconds = asyncio.run(load.run(target, samples, load.Traffic(concurrency=clients)))
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise RerankdError(f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}")
    return Half([outcome.latency for outcome in outcomes], seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """A workload from so many clients: the halves of replicas and of one process, by rounds."""

    workload: str
    documents: int
    clients: int
    replicas: Sequence[Half]
    whole: Sequence[Half]

    def json(self) -> dict[str, Any]:
        """The figures: rates by request, milliseconds, ratios of replicas to one process."""

        def figures(halves: Sequence[Half]) -> dict[str, Any]:
            milliseconds = [1000 * one for half in halves for one in half.latencies]
            p50, p99 = numpy.percentile(milliseconds, (50, 99))
            rate = Spread.of([half.rate for half in halves])
            return {"requests_per_second": rate.json(), "p50_ms": float(p50), "p99_ms": float(p99)}

        def ratio(percentile: float) -> dict[str, float]:
            pairs = zip(self.replicas, self.whole, strict=True)
            at = [[float(numpy.percentile(half.latencies, percentile)) for half in pair] for pair in pairs]
            return Spread.of([ours / theirs for ours, theirs in at]).json()

        throughput = Spread.of([a.rate / b.rate for a, b in zip(self.replicas, self.whole, strict=True)])
        return {
            "workload": self.workload,
            "documents": self.documents,
            "clients": self.clients,
            "requests": sum(len(half.latencies) for half in self.replicas),
            "replicas": figures(self.replicas),
            "one_process": figures(self.whole),
            "throughput_ratio": throughput.json(),
            "p50_ratio": ratio(50),
            "p99_ratio": ratio(99),
        }


def measured(urls: tuple[str, str], name: str, clients: int, rounds: int, seconds: float, corpus: Corpus) -> Row:
    """The rounds of a workload, the replicas' half first in every second one."""
    workload = WORKLOADS[name]

    def requests(count: int) -> list[Sample]:
        return [Sample(*corpus.request(workload)) for _ in range(count)]

    least = LEAST * clients
    warm = [sent(url, requests(least), clients) for url in urls]
    count = max(least, min(MOST, math.ceil(seconds * min(half.rate for half in warm))))
    halves: tuple[list[Half], list[Half]] = [], []
    for number in range(rounds):
        samples = requests(count)
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            halves[place].append(sent(urls[place], samples, clients))
    return Row(name, workload.documents, clients, *halves)


def table(rows: Sequence[Mapping[str, Any]], replicas: int) -> str:
    """As Markdown."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        ours, theirs = row["replicas"], row["one_process"]

        def two(at: str) -> str:
            return f"{ours[at]:.1f} / {theirs[at]:.1f}"

        def spread(of: Mapping[str, float]) -> str:
            return f"{of['median']:.2f} ({of['min']:.2f} to {of['max']:.2f})"

        rates = [one["requests_per_second"]["median"] for one in (ours, theirs)]
        return [
            f"{row['workload']} ({row['documents']} documents)",
            str(row["clients"]),
            str(row["requests"]),
            f"{rates[0]:.1f} / {rates[1]:.1f}",
            two("p50_ms"),
            two("p99_ms"),
            spread(row["throughput_ratio"]),
            spread(row["p99_ratio"]),
        ]

    head = [
        "requests",
        "clients",
        "of each",
        "requests/s",
        "p50, ms",
        "p99, ms",
        "rate, ratio (range)",
        "p99, ratio (range)",
    ]
    lines = [head, ["---"] * len(head), *map(cells, rows)]
    what = (
        f"{replicas} replicas of one thread / one process of {replicas} threads; "
        "the replicas gain where the ratio of rates is above 1, and that of p99 below 1"
    )
    return "\n".join([what, "", *(f"| {' | '.join(line)} |" for line in lines)])


def main() -> None:
    """See the module."""
    parser = program.parser("replicas", __doc__)
    parser.epilog = "Flags of `rerankd serve` for both servers stand behind --."
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0, help="of half a round")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--output", type=Path)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    given, flags = parser.parse_args(words[:end]), words[end + 1 :]
    count, common, rows = (
        str(given.replicas),
        (given.model, "--served-model-name", NAME, *flags),
        list[dict[str, Any]](),
    )
    print(f"load of the machine at the start: {os.getloadavg()[0]:.2f}", file=sys.stderr)
    with (
        started(*common, "--data-parallel-size", count, "--num-threads", "1") as ours,
        started(*common, "--num-threads", count) as theirs,
    ):
        for name in given.workloads:
            for clients in CLIENTS:
                urls, corpus = (ours.url, theirs.url), Corpus(len(rows))
                rows.append(measured(urls, name, clients, given.rounds, given.seconds, corpus).json())
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows, given.replicas))
    if given.output:
        head = {"model": given.model, "flags": flags, "machine": platform.processor(), "replicas": given.replicas}
        given.output.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    program.run(main)
