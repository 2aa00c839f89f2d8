"""Heads: from the last states of a model to one number for each document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.core import PackedBatch
from rerankd.layers.spec import Affine
from rerankd.models.vocabulary import VocabularyHead

Activation: TypeAlias = Literal["sigmoid", "identity"]
"""The function from a logit to a score."""


class Head(Protocol):
    """The last step of a model.

    activation: the function from a logit to a score
    outputs: the number of outputs for a document: values of an embedding, or labels; 0 for the logit alone
    """

    @property
    def activation(self) -> Activation: ...

    @property
    def outputs(self) -> int: ...

    def rows(self, batch: PackedBatch) -> list[int] | None:
        """The packed rows whose last states the head reads, ascending; None for all."""
        ...

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """The float32 logits of the documents, in order, from the states of `rows`: float32 [rows, hidden].

        A group that asks for outputs gets them in place of one logit for each document.
        """
        ...


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": torch.relu,
    "silu": F.silu,
}
"""The activations between the two linear layers of a classifier, by the names of configurations."""


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """A classifier of the first token of each pair: out(f(dense(x))).

    label: see `one_logit`
    dense: the pooler of BERT, the dense layer of RoBERTa's classification head; all float32
    between: f, a key of BETWEEN
    """

    dense: Affine
    out: Affine
    activation: Activation
    between: str = "tanh"
    label: Label | None = None

    @property
    def outputs(self) -> int:
        """The labels."""
        return len(self.out.weight)

    def rows(self, batch: PackedBatch) -> list[int]:
        """The first token of each document."""
        return [span.start for span in batch.documents()]

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`."""
        labels = F.linear(BETWEEN[self.between](F.linear(states, *self.dense)), *self.out)
        return asked_logits(labels, batch, self.label)


@dataclass(frozen=True, slots=True)
class TokenHead:
    """A decoder's last token: the logit of an answer, the difference of two, or the label tokens of a group.

    relevance: float32 [1, hidden], or [2, hidden] for (no, yes)
    vocabulary: the head over all tokens; None where the checkpoint has none
    cap: the number c of the capped logit c tanh(x / c); None for no cap
    """

    relevance: Tensor
    vocabulary: VocabularyHead | None
    activation: Activation
    outputs: int = 0
    cap: float | None = None

    def rows(self, batch: PackedBatch) -> list[int]:
        """The last token of each document."""
        return [span.stop - 1 for span in batch.documents()]

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """See `Head`. A group with labels gets their log-probabilities for each prompt, in place of one logit."""
        logits = one_logit(states @ self.relevance.T)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        labels = [group.labels for group in batch.groups if group.labels is not None]
        if not labels or self.vocabulary is None:
            return logits
        sizes = [len(group.suffixes) for group in batch.groups]
        group_states = zip(torch.split(states, sizes), batch.groups, strict=True)
        labelled = [part for part, group in group_states if group.labels is not None]
        log_probabilities = iter(self.vocabulary.log_probabilities(labelled, labels))
        scored = zip(torch.split(logits, sizes), batch.groups, strict=True)
        return torch.cat(
            [part if group.labels is None else next(log_probabilities).flatten() for part, group in scored]
        )


@dataclass(frozen=True, slots=True)
class Label:
    """The label whose probability is the score, for a head of several labels.

    alone: whether its probability is the sigmoid of its logit; otherwise it is its share in the softmax of all labels
    """

    index: int
    alone: bool


def one_logit(logits: Tensor, label: Label | None = None) -> Tensor:
    """One logit for each document, from the logits of all labels: [documents, labels] -> [documents].

    label: None for the only label, or the second of two (relevant, yes)

    The softmax of a label is the sigmoid of its logit minus the log-sum-exp of the others, so the rest of the code has
    no special case for several labels.
    """
    if label is not None:
        logit = logits[:, label.index]
        if label.alone:
            return logit
        others = [i for i in range(logits.shape[1]) if i != label.index]
        return logit - logits[:, others].logsumexp(1)
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def asked_logits(logits: Tensor, batch: PackedBatch, label: Label | None = None) -> Tensor:
    """One logit for each document, or all labels' logits if a group asks for them: [documents, labels] -> [values].

    label: see `one_logit`
    """
    scores = one_logit(logits, label)
    if not any(group.outputs for group in batch.groups):
        return scores
    sizes = [len(group.suffixes) for group in batch.groups]
    parts = zip(batch.groups, torch.split(logits, sizes), torch.split(scores, sizes), strict=True)
    return torch.cat(
        [group_logits.flatten() if group.outputs else group_scores for group, group_logits, group_scores in parts]
    )
