"""The words that every room shares: contents, requests, prompts, packed batches, results.

Nothing here imports another room, and nothing imports torch at run time, so that a server or a command
line can speak of a request without loading an engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


class RerankdError(Exception):
    """Base of the errors that a user can act on; `str()` of one is a complete sentence."""


class ModelError(RerankdError):
    """A checkpoint cannot be found, read or served."""


class InvalidRequest(RerankdError, ValueError):
    """A request that cannot be answered as it stands.

    `field` names the offending request field in the words of `RerankRequest` (`query`, `documents[3]`,
    `instruction`, `top_n`, ...), so that a dialect can translate it to its own. `request` is its place among several.
    """

    def __init__(self, field: str, problem: str, request: int = 0) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.request = request


class EngineClosed(RerankdError):
    """The engine was closed before the request was answered."""


class EngineDead(EngineClosed):
    """The engine has failed for good: no request is answered any more. The cause is chained where there is one."""


class EngineError(RerankdError):
    """The model failed on the request; the cause is chained."""


class OutOfMemory(EngineError):
    """One document alone is more than fits into memory; `str()` of it says how large it is."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a content."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a content: an http(s), `data:` or `file:` URL, or offline a path or a PIL image."""

    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """A video in a content: a URL or path as for `Image`, or a sequence of pictures as its frames."""

    source: Any
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A piece of a prompt as token ids. Only a request with `labels` may hold one."""

    ids: tuple[int, ...]


Part: TypeAlias = Text | Image | Video | Tokens
Content: TypeAlias = tuple[Part, ...]


def identity(part: Part) -> Hashable:
    """Equal for parts that are the same: strings by what they say, pictures by the object that they are."""

    def of(source: object) -> Hashable:
        if isinstance(source, (list, tuple)):
            return tuple(of(item) for item in source)
        return source if isinstance(source, str) else id(source)

    if isinstance(part, Text):
        return Text, part.text
    if isinstance(part, Tokens):
        return Tokens, part.ids
    if isinstance(part, Image):
        return Image, of(part.source), part.min_pixels, part.max_pixels
    return Video, of(part.source), part.fps, part.max_frames


def text_content(text: str) -> Content:
    """The content that a plain string stands for."""
    return (Text(text),)


Side: TypeAlias = Literal["left", "right"]
MAX_CHARACTERS = 2_000_000
"""Characters of one text at most, unless a model is loaded with another limit: tokenising them takes up to 1.3 GB."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """How much of a request may be read. All limits are in tokens; None means the model's own limit.

    `max_tokens` bounds a whole prompt, template included. With `allowed=False` a prompt that does not fit
    is an `InvalidRequest` instead of a shorter prompt. `side` is where a text is cut: "right" loses its end,
    "left" its beginning, None is what the checkpoint's tokenizer says, "right" where it says nothing.
    """

    max_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    max_tokens_per_query: int | None = None
    allowed: bool = True
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Chunking:
    """Have a document that does not fit scored by the best of its parts instead of being cut.

    `max_chunks_per_doc` bounds their number (None: as many as there are); what lies beyond them is cut.
    `overlap_tokens` is how many of a chunk's tokens the next one begins with, at most half of them: a larger overlap
    is reported in `RerankResult.ignored`.
    """

    max_chunks_per_doc: int | None = None
    overlap_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """Tokens whose probabilities of coming next are asked for, in place of a document's relevance.

    token_ids: in the order of the answer; one may stand there more than once
    among_themselves: whether the probabilities are among these tokens, else among the whole vocabulary
    query_last: whether the query stands behind each document, else before it
    """

    token_ids: tuple[int, ...]
    among_themselves: bool = False
    query_last: bool = False


OnError: TypeAlias = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and the documents to score against it. Every dialect and the Python API produce this.

    `activation=False` asks for logits in place of scores. `on_error` says whether a document that cannot be read (its
    image or video, above all) fails the request or is left out and reported in `RerankResult.failed`. With `chunking`
    a document that does not fit is split; one with images or videos is cut all the same.

    With `labels` each prompt is the query and a document as they stand, nothing put around them, in which a special
    token's string is that token; the answer is how probable the labels are as what comes next. Query and documents hold
    one `Text` or one `Tokens` each, all of one kind (the query may be empty), and nothing is ever cut or ranked.
    """

    query: Content
    documents: tuple[Content, ...]
    instruction: str | None = None
    top_n: int | None = None
    truncation: Truncation = Truncation()
    activation: bool = True
    on_error: OnError = "fail"
    chunking: Chunking | None = None
    labels: Labels | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document's text that is scored by itself.

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
    labels: how probable the labels that were asked for are, the first of which is the score
    """

    index: int
    score: float
    prompt_tokens: int
    truncated: bool = False
    best_chunk: Chunk | None = None
    chunks: int = 1
    labels: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the work on a request: its `media`, `tokenise`, `queue` or `model`.

    began: by `time.perf_counter`
    """

    name: str
    began: float
    seconds: float


def seconds_by_stage(stages: Iterable[Stage]) -> dict[str, float]:
    """How long each kind of stage took."""
    took: dict[str, float] = {}
    for stage in stages:
        took[stage.name] = took.get(stage.name, 0.0) + stage.seconds
    return took


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The answer to a `RerankRequest`.

    `documents` is sorted by falling logit (equal logits keep request order) and cut to `top_n`; with labels it is in
    request order.
    `prompt_tokens` counts every document's whole prompt, as vLLM does; `computed_tokens` counts what the
    model was given after prefix sharing. `ignored` names request fields that have no effect, or less than was asked
    for. `query_truncated` says that the query was cut to fit, beside one of the documents at least.
    `truncated` holds the indices of all documents that were cut to fit, those beyond `top_n` too. `failed` holds,
    by index, the error of each document that was left out because the request said `on_error="skip"`.
    `scored` counts the documents with those beyond `top_n`; `stages` says what took how long, with a `model` for each
    batch.
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

    def in_request_order(self) -> tuple[ScoredDocument, ...]:
        """The documents by index."""
        return tuple(sorted(self.documents, key=lambda document: document.index))


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is, and what it has done since its start.

    waiting: documents that no batch has taken
    batches, tokens, seconds: batches computed, the tokens in them, and how long the model took
    waiting_requests, waiting_tokens: requests of which a document waits, and tokens to compute for what waits
    rate: tokens a second of the last batches; 0 before the first
    """

    waiting: int
    batches: int
    tokens: int
    seconds: float
    waiting_requests: int = 0
    waiting_tokens: int = 0
    rate: float = 0.0


class Visual(Protocol):
    """An image, or a video, as patches of pixels.

    grid: patches in time, height and width
    tokens_per_step: placeholder tokens of each step in time
    seconds: when each step of a video is; empty for an image
    digest: equal for equal pixels
    """

    @property
    def grid(self) -> tuple[int, int, int]: ...

    @property
    def tokens_per_step(self) -> int: ...

    @property
    def seconds(self) -> tuple[float, ...]: ...

    @property
    def digest(self) -> bytes: ...

    def pixel_values(self) -> Tensor:
        """Flattened patches, float32 [t * h * w, channels * frames * side * side]."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens laid end to end in a packed batch. `token_types` is empty where all are zero.

    visuals: the images and videos whose placeholder tokens lie in the run, in the order of those
    """

    token_ids: list[int]
    token_types: list[int] = field(default_factory=list)
    visuals: tuple[Visual, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One request's prompts: what all of them share, laid once, and each document's own part.

    For a decoder `prefix` is the longest common token prefix and each suffix continues it. For an
    encoder of pairs `prefix` is empty. For a bi-encoder `prefix` is the query and a suffix a document.
    In each case the prompt of suffix i is `len(prefix) + len(suffixes[i])` tokens long.

    `chunks[i]` are the chunks that document i was split into, with a suffix each; a document that was not split
    has none, and one suffix. Where no document was split, `chunks` is empty.
    `truncated[i]` says that document i was cut to fit, `query_truncated` that the query was in any prompt.
    `ignored` names request fields that have less effect here than was asked for.
    `labels` are asked of each suffix in place of its relevance.
    """

    prefix: Segment
    suffixes: tuple[Segment, ...]
    truncated: tuple[bool, ...]
    query_truncated: bool = False
    chunks: tuple[tuple[Chunk, ...], ...] = ()
    ignored: tuple[str, ...] = ()
    labels: Labels | None = None

    @property
    def values(self) -> int:
        """How many numbers a model gives for each suffix."""
        return 1 if self.labels is None else len(self.labels.token_ids)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted whole."""
        return len(self.prefix) * len(self.suffixes) + sum(map(len, self.suffixes))

    def places(self) -> list[range]:
        """Each document's places among the suffixes."""
        places, start = [], 0
        for document in range(len(self.truncated)):
            stop = start + (len(self.chunks[document]) or 1 if self.chunks else 1)
            places.append(range(start, stop))
            start = stop
        return places


@dataclass(frozen=True, slots=True)
class Visuals:
    """A request's images and videos as read, in the order of their parts."""

    query: tuple[Visual, ...]
    documents: tuple[tuple[Visual, ...], ...]


class PromptBuilder(Protocol):
    """Turns a request into token ids. Implementations are thread-safe and hold no request state."""

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction changes the prompt; where it does not, a given one is reported as ignored."""
        ...

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's prompts, suffixes in document order; `visuals` are its images and videos, if it has any.

        Raises InvalidRequest for what does not fit (`truncation.allowed` is False), is not text where only
        text is read, or cannot be rendered.
        """
        ...


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start` (included) to `stop` (excluded) of the packed token dimension."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """Where a group's prefix and (some of) its suffixes lie in a packed batch, and what is asked of each of these."""

    prefix: Span
    suffixes: tuple[Span, ...]
    labels: Labels | None = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Groups laid end to end in one token dimension of length T: `[P][D1][D2]...[DN]`, group after group.

    token_ids: int64 [T]
    positions: int64 [T], from 0 in each prefix; a suffix continues from the end of its prefix in a
        decoder, and starts at 0 in an encoder
    token_types: int64 [T], or None where the model has none
    groups: the segments, in the order of the logits that a model returns
    visuals: images and videos, in the order of their placeholders among the tokens
    """

    token_ids: Tensor
    positions: Tensor
    token_types: Tensor | None
    groups: tuple[PackedGroup, ...]
    visuals: tuple[Visual, ...] = ()

    def documents(self) -> list[Span]:
        """Every document's span, in the order of the logits."""
        return [suffix for group in self.groups for suffix in group.suffixes]
