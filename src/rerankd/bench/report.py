"""The report of a run of the load generator: vLLM's table, and a JSON file with vLLM's keys."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerankd.bench.load import Outcome, Traffic
from rerankd.core import RerankdError

WIDTH = 50
METRICS = {
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": ("E2EL incl. Client Queue", "Queue-inclusive End-to-end Latency"),
}
"""Metrics of vLLM's `--percentile-metrics` for requests without generated tokens: short and long title."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of some durations, in milliseconds; zeros where there are no durations, as in vLLM."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[str, float]

    @classmethod
    def of(cls, seconds: Sequence[float], percentiles: Sequence[float]) -> Statistics:
        import numpy

        values = numpy.array(seconds or [0.0]) * 1000
        at = {f"{p:g}": float(numpy.percentile(values, p)) for p in percentiles}
        return cls(float(values.mean()), float(numpy.median(values)), float(values.std()), at)


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a run. `metrics` and `percentiles` are shown; the outcomes are in sending order."""

    outcomes: Sequence[Outcome]
    duration: float
    traffic: Traffic
    metrics: Sequence[str]
    percentiles: Sequence[float]

    @property
    def succeeded(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.error]

    @property
    def failures(self) -> dict[str, int]:
        """Failed requests by cause, the most frequent first."""
        return dict(Counter(outcome.error for outcome in self.outcomes if outcome.error).most_common())

    @property
    def tokens(self) -> int | None:
        """Input tokens of the requests that succeeded; None where neither side could count some of them."""
        counts = [outcome.tokens for outcome in self.succeeded]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def documents(self) -> int:
        return sum(len(outcome.sample.documents) for outcome in self.succeeded)

    def statistics(self) -> dict[str, Statistics]:
        """The statistics of the metrics to show that this run has: queueing needs a limit on requests in flight."""
        limited = self.traffic.concurrency is not None
        values = {"e2el": [outcome.latency for outcome in self.succeeded]}
        if limited:
            values["client_queue_time"] = [outcome.queue_time for outcome in self.succeeded]
            if self.traffic.rate != float("inf"):
                values["e2el_including_client_queue"] = [o.latency + o.queue_time for o in self.succeeded]
        return {name: Statistics.of(values[name], self.percentiles) for name in self.metrics if name in values}

    def table(self) -> str:
        """vLLM's "Serving Benchmark Result", with the causes of failures where there are any."""
        completed, tokens = len(self.succeeded), self.tokens
        lines = [
            f"{' Serving Benchmark Result ':=^{WIDTH}}",
            row("Successful requests:", completed),
            row("Failed requests:", len(self.outcomes) - completed),
        ]
        if self.traffic.concurrency is not None:
            lines.append(row("Maximum request concurrency:", self.traffic.concurrency))
        if self.traffic.rate != float("inf"):
            lines.append(row("Request rate configured (RPS):", self.traffic.rate))
        lines += [
            row("Benchmark duration (s):", self.duration),
            row("Total input tokens:", tokens),
            row("Request throughput (req/s):", completed / self.duration),
        ]
        if self.documents != completed:
            lines.append(row("Input throughput (inputs/s):", self.documents / self.duration))
        lines.append(row("Total token throughput (tok/s):", tokens and tokens / self.duration))
        for name, figures in self.statistics().items():
            short, long = METRICS[name]
            lines += [
                f"{long:-^{WIDTH}}",
                row(f"Mean {short} (ms):", figures.mean),
                row(f"Median {short} (ms):", figures.median),
                *(row(f"P{p} {short} (ms):", value) for p, value in figures.percentiles.items()),
            ]
        if self.failures:
            lines.append(f"{'Failed Requests by Cause':-^{WIDTH}}")
            lines += [f"{count:>8}  {cause}" for cause, count in self.failures.items()]
        return "\n".join([*lines, "=" * WIDTH])

    def results(self) -> dict[str, Any]:
        """The figures under vLLM's keys, and `failed`, `failed_by_cause` and who counted the tokens."""
        succeeded, tokens = self.succeeded, self.tokens
        results: dict[str, Any] = {
            "duration": self.duration,
            "completed": len(succeeded),
            "failed": len(self.outcomes) - len(succeeded),
            "failed_by_cause": self.failures,
            "total_input_tokens": tokens,
            "tokens_counted_by": "server" if all(o.counted_by_server for o in succeeded) else "client",
            "total_input_sequences": self.documents,
            "request_throughput": len(succeeded) / self.duration,
            "input_sequence_throughput": self.documents / self.duration,
            "total_token_throughput": tokens and tokens / self.duration,
            "input_lens": [outcome.tokens for outcome in self.outcomes],
            "latencies": [outcome.latency for outcome in self.outcomes],
            "queue_times": [outcome.queue_time for outcome in self.outcomes],
            "errors": [outcome.error for outcome in self.outcomes],
        }
        for name, figures in self.statistics().items():
            results[f"mean_{name}_ms"] = figures.mean
            results[f"median_{name}_ms"] = figures.median
            results[f"std_{name}_ms"] = figures.std
            for p, value in figures.percentiles.items():
                results[f"p{p}_{name}_ms"] = value
        return results


def row(name: str, value: float | int | None) -> str:
    if value is None:
        return f"{name:<40} {'n/a':<10}"
    return f"{name:<40} {value:<10}" if isinstance(value, int) else f"{name:<40} {value:<10.2f}"


DETAILS = ("input_lens", "errors")
"""Keys that vLLM leaves out of the file without `--save-detailed`."""


def file_name(label: str, traffic: Traffic, model: str, date: str) -> str:
    """vLLM's pattern: `{label}-{rate}qps[-concurrency{n}]-{last part of the model's name}-{date}.json`."""
    limit = "" if traffic.concurrency is None else f"-concurrency{traffic.concurrency}"
    return f"{label}-{traffic.rate}qps{limit}-{model.rstrip('/').split('/')[-1]}-{date}.json"


def save(content: Mapping[str, Any], path: Path, *, append: bool) -> None:
    """Write a JSON object to a new file, or as a further line of one.

    Raises RerankdError where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            if file.tell():
                file.write("\n")
            json.dump(content, file)
    except OSError as error:
        raise RerankdError(f"--result-dir, --result-filename: {path} cannot be written ({error}).") from error


def selection(metrics: str, percentiles: str) -> tuple[list[str], list[float]]:
    """The two comma-separated lists of the command line.

    Raises RerankdError for what is neither known here nor to vLLM, which leaves out metrics of generated tokens.
    """
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    for name in names:
        if name not in (*METRICS, "ttft", "tpot", "itl"):
            raise RerankdError(f"--percentile-metrics: {name!r} is not one of {', '.join(METRICS)}.")
    try:
        points = [float(p) for p in percentiles.split(",")]
    except ValueError:
        points = []
    if not points or not all(0 <= p <= 100 for p in points):
        raise RerankdError(f"--metric-percentiles: {percentiles!r} is not a list such as 50,95,99.")
    return [name for name in names if name in METRICS], points
