"""Repeated measurements of one engine at one workload, and their summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Round:
    """Requests sent one after the other, whose documents nothing had seen before.

    seconds: the seconds of each request
    documents, tokens, multiply_adds: the sums over all requests; tokens count each document's whole prompt
    gemm_rate: the machine's multiply-adds for each second at these GEMMs, measured beside the round
    """

    seconds: tuple[float, ...]
    documents: int
    tokens: int
    multiply_adds: int
    gemm_rate: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of a figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"

    def json(self) -> dict[str, float]:
        return {"median": self.median, "min": self.low, "max": self.high}


@dataclass(frozen=True, slots=True)
class Summary:
    """Rates a second, a request's latency in seconds, and the share of the limit that `limit.py` counts."""

    documents: Spread
    tokens: Spread
    latency: Spread
    limit: Spread
    share: Spread

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Summary:
        total = [(measured, sum(measured.seconds)) for measured in rounds]
        return cls(
            documents=Spread.of([measured.documents / seconds for measured, seconds in total]),
            tokens=Spread.of([measured.tokens / seconds for measured, seconds in total]),
            latency=Spread.of([median(measured.seconds) for measured in rounds]),
            limit=Spread.of([measured.documents * measured.gemm_rate / measured.multiply_adds for measured in rounds]),
            share=Spread.of([measured.multiply_adds / seconds / measured.gemm_rate for measured, seconds in total]),
        )

    @property
    def milliseconds(self) -> Spread:
        """The latency of a request, in milliseconds."""
        return Spread(*(1000 * seconds for seconds in (self.latency.median, self.latency.low, self.latency.high)))

    def table(self) -> str:
        rows = {
            "Documents/s": self.documents,
            "Tokens/s": self.tokens,
            "Latency of a request, p50 (ms)": self.milliseconds,
            "Limit (documents/s)": self.limit,
            "Share of the limit": self.share,
        }
        return "\n".join(["Median (range) over the rounds", *(f"{name:<32} {row}" for name, row in rows.items())])

    def json(self) -> Mapping[str, Any]:
        return {
            "documents_per_second": self.documents.json(),
            "tokens_per_second": self.tokens.json(),
            "latency_ms": self.milliseconds.json(),
            "limit_documents_per_second": self.limit.json(),
            "share_of_limit": self.share.json(),
        }
