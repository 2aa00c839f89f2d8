"""A decoder's head over its vocabulary: the probabilities of tokens as the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from rerankd.core import Labels
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights

ROWS_AT_ONCE = 8192
"""Rows of the head that are in float32 at a time."""


class VocabularyHead:
    """The rows that give each token's logit, [size, hidden].

    A head that is not the embedding stays in its file until it is asked for: labels' rows are read one by one, and all
    of it only for probabilities among the whole vocabulary. From then on it is kept.
    """

    def __init__(self, size: int, whole: Callable[[], Tensor], rows: Callable[[Sequence[int]], Tensor]) -> None:
        """whole: the matrix, in the model's dtype; rows: some rows of it, in float32"""
        self.size = size
        self._whole = whole
        self._rows = rows

    def log_probabilities(self, states: Sequence[Tensor], labels: Sequence[Labels]) -> list[Tensor]:
        """The log-probabilities of each group's labels after each of its prompts: float32 [prompts, labels].

        states: each group's last states, float32 [prompts, hidden]
        """
        logits = [
            group_states @ self._rows(group_labels.token_ids).T
            for group_states, group_labels in zip(states, labels, strict=True)
        ]
        # Once for all groups, since the whole head goes through the processor for it.
        among_all = [
            group_states
            for group_states, group_labels in zip(states, labels, strict=True)
            if not group_labels.among_themselves
        ]
        totals = self._totals(torch.cat(among_all)) if among_all else torch.empty(0)
        group_totals = iter(torch.split(totals, [len(group_states) for group_states in among_all]))
        return [
            group_logits.log_softmax(-1)
            if group_labels.among_themselves
            else group_logits - next(group_totals)[:, None]
            for group_logits, group_labels in zip(logits, labels, strict=True)
        ]

    @cached_property
    def _matrix(self) -> Tensor:
        return self._whole()

    def _totals(self, states: Tensor) -> Tensor:
        """The logarithm of the sum of all tokens' exponentiated logits: float32 [prompts]."""
        parts = [(states @ rows.float().T).logsumexp(-1) for rows in torch.split(self._matrix, ROWS_AT_ONCE)]
        return torch.stack(parts).logsumexp(0)


def vocabulary_head(config: Config, weights: Weights, embedding: Tensor) -> VocabularyHead | None:
    """A checkpoint's head over its vocabulary; None for one that was converted to a classifier."""
    if "score.weight" in weights:
        return None
    size, hidden = embedding.shape
    if is_tied(config, weights):
        return VocabularyHead(size, lambda: embedding, lambda ids: embedding[list(ids)].float())
    return VocabularyHead(
        size,
        lambda: weights.tensor("lm_head.weight", size, hidden),
        lambda ids: weights.rows("lm_head.weight", ids, hidden),
    )


def is_tied(config: Config, weights: Weights) -> bool:
    """Whether the head over the vocabulary is the embedding."""
    tied = config.flag("tie_word_embeddings")
    return "lm_head.weight" not in weights if tied is None else tied
