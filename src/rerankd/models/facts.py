"""What is to know of a model's head where the model itself is in another process."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.models.embedding import EmbeddingHead
from rerankd.models.heads import Activation, Head, TokenHead


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What callers of an engine are told of its model's head.

    activation, outputs: see `Head`
    vocabulary: how many tokens it can give the probability of; None where it can of none
    at_length_1: whether embeddings are compared at the length 1
    """

    activation: Activation
    outputs: int
    vocabulary: int | None
    at_length_1: bool

    @classmethod
    def of(cls, head: Head) -> HeadFacts:
        """The facts of a loaded head."""
        vocabulary = head.vocabulary if isinstance(head, TokenHead) else None
        return cls(
            head.activation,
            head.outputs,
            None if vocabulary is None else vocabulary.size,
            isinstance(head, EmbeddingHead) and head.similarity == "cosine",
        )
