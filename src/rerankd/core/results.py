"""Results: scored documents, chunks, times, and how busy an engine is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rerankd.core.contents import Content
from rerankd.core.counts import counted
from rerankd.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document's text with a score of its own.

    index: the position among the document's chunks, from 0
    tokens, characters: start (included) and stop (excluded) in the document's text, in tokens of that text alone, and
        in Unicode code points
    """

    index: int
    tokens: tuple[int, int]
    characters: tuple[int, int]
    text: str


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A scored document.

    index: its position in the request, from 0
    score: a score, or a logit if the request asked for logits
    prompt_tokens: the tokens of all its prompts
    truncated: whether it was cut to fit
    best_chunk: the chunk with this score; None for a document that was not split
    chunks: the number of scored chunks; each has a prompt of its own
    labels: the probabilities of the request's labels; the first is the score
    values: the request's outputs, an embedding or a logit for each label; the first is the score
    """

    index: int
    score: float
    prompt_tokens: int
    truncated: bool = False
    best_chunk: Chunk | None = None
    chunks: int = 1
    labels: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class TextToken:
    """A token of a text.

    text: the token's string in the tokenizer's vocabulary
    special: whether the tokenizer added the token around the text
    characters: start (included) and stop (excluded) in the text, in Unicode code points; (0, 0) for a special token
    """

    id: int
    text: str
    special: bool = False
    characters: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the work on a request: `media`, `tokenise`, `queue` or `model`.

    began: the time of its start, by `time.perf_counter`
    seconds: its duration
    """

    name: str
    began: float
    seconds: float


def seconds_by_stage(stages: Iterable[Stage]) -> dict[str, float]:
    """The seconds of each kind of stage."""
    took: dict[str, float] = {}
    for stage in stages:
        took[stage.name] = took.get(stage.name, 0.0) + stage.seconds
    return took


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The answer to a `RerankRequest`. Iterating gives `documents`. A notebook shows a table.

    documents: by falling logit (equal logits in request order), at most `top_n`; with labels or outputs in the order
        of the request
    prompt_tokens: the tokens of the whole prompts of all documents, as vLLM counts them
    computed_tokens: the tokens that the model computed; a shared prefix counts once for each batch
    query_truncated: whether the query was cut to fit, beside at least one document
    ignored: names of request fields that have no effect, or less effect than the request asks for
    truncated: the indices of all documents that were cut to fit, also beyond `top_n`
    failed: by index, the error of each document that was left out because of `on_error="skip"`
    scored: the number of scored documents, also beyond `top_n` and below `min_score`
    stages: the durations of the stages, with one `model` for each batch
    below_min_score: the indices of documents that were left out for their scores
    contents: the documents of the request, to show them beside the scores
    windows: the number of prompts of a listwise model, each with several documents; 0 for other models
    """

    documents: tuple[ScoredDocument, ...]
    prompt_tokens: int
    computed_tokens: int
    query_truncated: bool = False
    ignored: tuple[str, ...] = ()
    truncated: tuple[int, ...] = ()
    failed: Mapping[int, InvalidRequest] = field(default_factory=dict)
    scored: int = 0
    stages: tuple[Stage, ...] = field(default=(), compare=False)
    below_min_score: tuple[int, ...] = ()
    contents: tuple[Content, ...] = field(default=(), compare=False, repr=False)
    windows: int = 0

    def __iter__(self) -> Iterator[ScoredDocument]:
        return iter(self.documents)

    def _repr_html_(self) -> str:
        from rerankd.core.tables import table

        took = sum(seconds_by_stage(self.stages).values())
        note = f"{len(self.documents)} of {counted(self.scored, 'document')}, {counted(self.prompt_tokens, 'token')}"
        return table(self.documents, self.contents, f"{note}, {1000 * took:.1f} ms")

    def in_request_order(self) -> tuple[ScoredDocument, ...]:
        """The documents by index."""
        return tuple(sorted(self.documents, key=lambda document: document.index))


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """The present load of a replica, and its work since the server's start.

    running: whether its process takes batches
    held_tokens: tokens of the batches that the replica has not answered yet
    batches, tokens, seconds: as in `EngineLoad`
    restarts: how often its process was started again
    """

    running: bool
    held_tokens: int = 0
    batches: int = 0
    tokens: int = 0
    seconds: float = 0.0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The present load of an engine, and its work since its start.

    waiting: the number of documents that no batch has taken
    batches, tokens, seconds: the computed batches, their tokens, and the seconds of the model
    waiting_requests, waiting_tokens: requests with a waiting document, and the tokens to compute for these documents
    running: requests in the batches that are being computed
    rate: tokens a second of the last batches; 0 before the first
    most: the most tokens of a batch now
    threads: the number of CPU threads that compute batches or launch them, of all replicas
    replicas: the load of each replica, if there are several
    """

    waiting: int
    batches: int
    tokens: int
    seconds: float
    waiting_requests: int = 0
    waiting_tokens: int = 0
    running: int = 0
    rate: float = 0.0
    most: int = 0
    threads: int = 0
    replicas: tuple[ReplicaLoad, ...] = ()
