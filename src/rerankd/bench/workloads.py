"""The documents of the offline benchmarks: English text that every machine has, each piece used once."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rerankd.core import RerankdError

QUERY_WORDS = 10
BEGINNING = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """How long documents are, in words; how many make a request where nobody says; requests in a round."""

    words: Callable[[random.Random], int]
    documents: int
    requests: int


def log_normal(generator: random.Random) -> int:
    """20 to 400 words, half of them under 90: passages of a search index, as uneven as they come."""
    return min(400, max(20, round(generator.lognormvariate(math.log(90), 0.7))))


KINDS: Mapping[str, Kind] = {
    "uniform": Kind(lambda generator: 100, 32, 1),
    "mixed": Kind(log_normal, 32, 1),
    "short": Kind(lambda generator: 30, 10, 100),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One request's shape. Its name on the command line is `kind` or `kind:documents`."""

    kind: str
    documents: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.documents}"

    @classmethod
    def parse(cls, name: str) -> Workload:
        """Raises RerankdError for a kind that is none, or a number of documents below 1."""
        kind, _, documents = name.partition(":")
        if kind not in KINDS:
            raise RerankdError(f"The workload {name!r} is unknown; choose {', '.join(KINDS)}, or e.g. uniform:200.")
        if not documents:
            return cls(kind, KINDS[kind].documents)
        if not documents.isdigit() or int(documents) < 1:
            raise RerankdError(f"The workload {name!r} must name a number of documents of at least 1.")
        return cls(kind, int(documents))


@dataclass(slots=True)
class Corpus:
    """Requests, no two of whose texts begin with the same eight words: no cache has seen a document before.

    Texts are runs of words of the Python language reference (`pydoc_data.topics`), which comes with Python.
    """

    seed: int = 0
    words: list[str] = field(init=False)
    random: random.Random = field(init=False)
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        from pydoc_data.topics import topics

        text = " ".join(topics[name] for name in sorted(topics))
        self.words = re.findall(r"[A-Za-z]{2,}", text)
        self.random = random.Random(self.seed)
        # Some passages stand there more than once: of equal beginnings one is kept.
        beginnings = {tuple(self.words[i : i + BEGINNING]): i for i in range(len(self.words))}
        self.starts = list(beginnings.values())
        self.random.shuffle(self.starts)

    def text(self, words: int) -> str:
        start = self.starts.pop()
        return " ".join(self.words[(start + i) % len(self.words)] for i in range(words))

    def request(self, workload: Workload) -> tuple[str, list[str]]:
        """A query of ten words and the workload's documents.

        Raises RerankdError after some 50,000 texts: then every beginning has been used.
        """
        if len(self.starts) <= workload.documents:
            raise RerankdError("The corpus is used up: ask for fewer rounds or documents.")
        words = KINDS[workload.kind].words
        query = self.text(QUERY_WORDS)
        return query, [self.text(words(self.random)) for _ in range(workload.documents)]
