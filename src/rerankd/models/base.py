"""What the engine knows of a model, and the two heads that several families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.models.config import Config

if TYPE_CHECKING:
    from rerankd.models.vocabulary import VocabularyHead

Activation: TypeAlias = Literal["sigmoid", "identity"]
TokenIds: TypeAlias = Callable[[str], int]
"""The id of a string that is one token of the checkpoint's tokenizer; ModelError where it is none."""


class Model(Protocol):
    """A loaded model. It holds no state between calls.

    activation: what turns a logit into a score
    """

    activation: Activation

    def __call__(self, batch: PackedBatch) -> Tensor:
        """float32 logits [documents], in the order of `batch.documents()`.

        A document of a group with labels, which a decoder alone may be given, has their log-probabilities there in
        place of one logit.
        """
        ...


@runtime_checkable
class LanguageModel(Model, Protocol):
    """A model that may be asked for labels.

    vocabulary: its head over all tokens; None where the checkpoint has none
    """

    vocabulary: VocabularyHead | None


def score_rows(logits: Tensor) -> Tensor:
    """One logit a document from a head of 1 or 2 labels: [documents, labels] -> [documents].

    The sigmoid of a difference is the softmax of a pair, so the second of two labels (relevant, yes) needs no
    case of its own further on.
    """
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def label_count(config: Config) -> int:
    """Labels of a classification head: 1 or 2; anything else does not score relevance."""
    if config.num_labels not in (1, 2):
        raise ModelError(
            f"{config.source} describes a classifier of {config.num_labels} labels; a reranker has 1 "
            "(relevance) or 2 (irrelevant, relevant)."
        )
    return config.num_labels


def declared_activation(config: Config) -> Activation:
    """The activation that a cross-encoder's authors declare for sentence-transformers, else sigmoid.

    `cross-encoder/ms-marco-*` checkpoints declare Identity: their published scores are logits.
    """
    section = config.entries.get("sentence_transformers")
    name = (section or {}).get("activation_fn") or config.entries.get("sbert_ce_default_activation_function")
    if label_count(config) == 2 or not name:
        return "sigmoid"
    match str(name).rsplit(".", 1)[-1]:
        case "Identity":
            return "identity"
        case "Sigmoid":
            return "sigmoid"
        case other:
            raise ModelError(f"{config.source} declares the activation {other}; Sigmoid and Identity are known.")


def last_tokens(batch: PackedBatch) -> Tensor:
    """The row of every document's last token, int64 [documents]."""
    return torch.tensor([span.stop - 1 for span in batch.documents()], device=batch.token_ids.device)
