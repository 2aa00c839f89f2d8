"""The facts of a model's head, for a process that does not hold the model."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.models.embedding import EmbeddingHead
from rerankd.models.heads import Activation, Head, TokenHead


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """The facts of a model's head that callers of an engine need.

    activation, outputs: see `Head`
    vocabulary: the number of tokens whose probability the head can give; None if it gives none
    at_length_1: whether embeddings are normalised to length 1 before they are compared
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
