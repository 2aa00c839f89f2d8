"""Results: scored documents, chunks, times, and how busy an engine is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rerankd.core.contents import Content
from rerankd.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document's text with a score of its own.

    index: its place among the document's chunks
    tokens, characters: its start (included) and stop (excluded) in the document's text, in tokens of that text by
        itself and in Unicode code points
    """

    index: int
    tokens: tuple[int, int]
    characters: tuple[int, int]
    text: str


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document's place in the request, its score, its prompts' length and whether it was cut to fit.

    best_chunk: the chunk that the score is of; None for a document that was not split
    chunks: how many chunks were scored, each in a prompt of its own
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
    """A token of a text by itself.

    text: as the tokenizer's vocabulary has it
    special: whether it is one that the tokenizer puts around a text
    characters: its start (included) and stop (excluded) in the text, in Unicode code points; of a special one (0, 0)
    """

    id: int
    text: str
    special: bool = False
    characters: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the work on a request: `media`, `tokenise`, `queue` or `model`.

    began: by `time.perf_counter`
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
    """The answer to a `RerankRequest`.

    `documents` is sorted by falling logit (equal logits keep request order) and cut to `top_n`; with labels or outputs
    it is in request order.
    `prompt_tokens` counts every document's whole prompt, as vLLM does; `computed_tokens` counts what the
    model was given after prefix sharing. `ignored` names request fields that have no effect, or less than was asked
    for. `query_truncated` says that the query was cut to fit, beside one of the documents at least.
    `truncated` holds the indices of all documents that were cut to fit, those beyond `top_n` too. `failed` holds,
    by index, the error of each document that was left out because the request said `on_error="skip"`.
    `below_min_score` holds the indices of those that were left out for their scores. `scored` counts the documents with
    those beyond `top_n` and below `min_score`; `stages` says what took how long, with a `model` for each batch.
    `contents` are the documents of the request, for what shows the result. `windows` counts the prompts of a listwise
    model, each of several documents; 0 for other models, which read each document by itself.

    Iterating gives `documents`. A notebook shows a table.
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
        note = f"{len(self.documents)} of {self.scored} documents, {self.prompt_tokens} tokens, {1000 * took:.1f} ms"
        return table(self.documents, self.contents, note)

    def in_request_order(self) -> tuple[ScoredDocument, ...]:
        """The documents by index."""
        return tuple(sorted(self.documents, key=lambda document: document.index))


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """The load of a replica of the model now, and its work since the server's start.

    running: whether its process takes batches
    held_tokens: tokens of the batches that the replica was given and has not answered
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
    """The load of an engine now, and its work since its start.

    waiting: documents that no batch has taken
    batches, tokens, seconds: batches computed, the tokens in them, and the seconds of the model
    waiting_requests, waiting_tokens: requests with a waiting document, and the tokens to compute for these documents
    running: requests in the batches that are being computed
    rate: tokens a second of the last batches; 0 before the first
    most: tokens that one batch may have now
    replicas: the load of each replica, where there are several
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
    replicas: tuple[ReplicaLoad, ...] = ()
