"""What was measured at a server: requests alone, requests at several loads, and the replica found by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rerankd.bench.load import Outcome
from rerankd.bench.queueing import Replica, Requests
from rerankd.core import RerankdError


@dataclass(frozen=True, slots=True)
class Work:
    """Batches, their tokens, and seconds."""

    batches: float
    tokens: float
    seconds: float

    def __sub__(self, before: Work) -> Work:
        return Work(self.batches - before.batches, self.tokens - before.tokens, self.seconds - before.seconds)

    def __mul__(self, factor: float) -> Work:
        return Work(self.batches * factor, self.tokens * factor, self.seconds * factor)

    def __add__(self, other: Work) -> Work:
        return Work(self.batches + other.batches, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True, slots=True)
class Alone:
    """A request beside which there was no other. part: of a sample's documents"""

    part: float
    work: Work
    outcome: Outcome

    def outside(self, replicas: int) -> float:
        """Seconds that it spent outside its batches, which so many replicas compute at the same time."""
        return max(self.outcome.latency - self.work.seconds / min(max(self.work.batches, 1), replicas), 0.0)


@dataclass(frozen=True, slots=True)
class Level:
    """Requests at a load.

    clients: requests in flight at a time; None where they came at `rate` a second, whatever was answered
    answered: requests a second
    busy: the share of its time that a replica computed
    p50, p99: seconds
    """

    clients: int | None
    rate: float | None
    requests: int
    answered: float
    busy: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A replica and the requests that it was measured with.

    replicas: of the server, whose loads are `levels`
    documents: of a request, on average
    sent, received: bytes of a request's and an answer's body, on average
    """

    model: str
    replica: Replica
    requests: Requests
    replicas: int
    documents: float
    sent: float
    received: float
    levels: Sequence[Level] = ()

    def json(self) -> dict[str, Any]:
        """For a file, from which `read` makes it again."""
        return asdict(self)

    @classmethod
    def read(cls, content: Any) -> Measured:
        """Raises RerankdError for what no `json` made."""
        try:
            replica, requests = Replica(**content["replica"]), Requests(**content["requests"])
            trace, sizes = (tuple((a, b) for a, b in pairs) for pairs in (replica.trace, replica.sizes))
            own = {**content, "replica": replace(replica, trace=trace, sizes=sizes)}
            return cls(**{**own, "requests": requests, "levels": tuple(Level(**one) for one in content["levels"])})
        except (TypeError, KeyError, ValueError) as error:
            raise RerankdError(
                f"--measured: not a file of `rerankd bench capacity --save-result` ({error})."
            ) from error
