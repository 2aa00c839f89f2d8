"""Requests as token ids, and the protocol of prompt builders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rerankd.core.requests import Labels, RerankRequest
from rerankd.core.results import Chunk

if TYPE_CHECKING:
    from torch import Tensor


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
    unseen: the last tokens that no token attends to, not even the token itself (the expansion of a query)
    """

    token_ids: list[int]
    token_types: list[int] = field(default_factory=list)
    visuals: tuple[Visual, ...] = ()
    unseen: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Windows:
    """The documents in each suffix of a group, where a suffix is a whole prompt of several documents and the query.

    A model gives a vector of each document and, behind them, of the query; then zeros up to `PromptGroup.values`.

    documents: how many documents each suffix holds, in their order
    vector: values of a vector
    """

    documents: tuple[int, ...]
    vector: int


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One request's prompts: the prefix that all prompts share, laid once, and each document's own suffix.

    For a decoder `prefix` is the longest common token prefix and each suffix continues it. For an
    encoder of pairs `prefix` is empty. For a bi-encoder `prefix` is the query and a suffix a document.
    In each case the prompt of suffix i is `len(prefix) + len(suffixes[i])` tokens long.

    `chunks[i]` are the chunks that document i was split into, with a suffix each; a document that was not split
    has none, and one suffix. Where no document was split, `chunks` is empty.
    `truncated[i]` says that document i was cut to fit, `query_truncated` that the query was in any prompt.
    `ignored` names request fields that have less effect than the request asks for.
    `labels` are asked of each suffix in place of its relevance.
    `windows` lists the documents of each suffix, where a suffix holds several; the prefix is then empty.
    `tail` is how many tokens of each suffix follow its document, in a group whose prefix ends where documents begin; 0
    in other groups.
    `outputs` is how many numbers a head makes of each suffix where all are asked for in place of its relevance (an
    embedding's, a logit for each label), else 0; the prefix is empty then.
    """

    prefix: Segment
    suffixes: tuple[Segment, ...]
    truncated: tuple[bool, ...]
    query_truncated: bool = False
    chunks: tuple[tuple[Chunk, ...], ...] = ()
    ignored: tuple[str, ...] = ()
    labels: Labels | None = None
    windows: Windows | None = None
    tail: int = 0
    outputs: int = 0

    @property
    def values(self) -> int:
        """Numbers that a model gives for each suffix."""
        if self.outputs:
            return self.outputs
        if self.windows is not None:
            return (1 + max(self.windows.documents, default=0)) * self.windows.vector
        return 1 if self.labels is None else len(self.labels.token_ids)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted whole."""
        return len(self.prefix) * len(self.suffixes) + sum(map(len, self.suffixes))

    def places(self) -> list[range]:
        """Each document's places among the suffixes."""
        if self.windows is not None:
            return [range(i, i + 1) for i, count in enumerate(self.windows.documents) for _ in range(count)]
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
    """Turns a request into token ids. Implementations are thread-safe and keep no state of a request."""

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction changes the prompt. An instruction without effect is reported as ignored."""
        ...

    def build(self, request: RerankRequest, visuals: Visuals | None = None) -> PromptGroup:
        """The request's prompts, suffixes in document order; `visuals` are its images and videos, if it has any.

        Raises InvalidRequest for what does not fit (`truncation.allowed` is False), is not text where only
        text is read, or cannot be rendered.
        """
        ...
