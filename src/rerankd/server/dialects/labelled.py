"""Probabilities of a classifier's labels, from their logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rerankd.options import LabelsActivation, ModelInfo


def label_names(info: ModelInfo, count: int) -> Sequence[str]:
    """The names of `count` labels: the model's names, or transformers' names for labels without names."""
    return info.labels if len(info.labels) == count else [f"LABEL_{i}" for i in range(count)]


def id2label(info: ModelInfo) -> Mapping[str, str]:
    """The names of the model's labels by their number in digits; one of transformers' own for a model that has none."""
    return {str(i): name for i, name in enumerate(label_names(info, max(len(info.labels), 1)))}


def probabilities(logits: Sequence[float], activation: LabelsActivation) -> list[float]:
    """The activation of the logits of one text."""
    if activation == "identity":
        return list(logits)
    if activation == "softmax" and len(logits) > 1:
        highest = max(logits)
        shares = [math.exp(logit - highest) for logit in logits]
        total = sum(shares)
        return [share / total for share in shares]
    # The two forms keep exp() from overflowing.
    return [1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) for x in logits]
