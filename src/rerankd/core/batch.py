"""Prompts laid end to end, as a model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerankd.core.prompts import Visual
from rerankd.core.requests import Labels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start` (included) to `stop` (excluded) of the packed token dimension."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """The places of a group's prefix and of (some of) its suffixes in a packed batch, and the numbers to compute for a
    suffix.

    unseen: the last rows of the prefix that no row attends to
    tail: the last rows of each suffix, which follow its document; see `PromptGroup`
    values: numbers that a model gives for each suffix
    outputs: whether these are all outputs of the head for a document (an embedding, labels), in place of its relevance
    """

    prefix: Span
    suffixes: tuple[Span, ...]
    labels: Labels | None = None
    unseen: int = 0
    tail: int = 0
    values: int = 1
    outputs: bool = False


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
