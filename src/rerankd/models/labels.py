"""Whether the labels of a classifier score relevance, and the activation that its authors declare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.sentence_transformers import SETTINGS, read_settings
from rerankd.models.heads import Activation, Label

MOST_LISTED = 12
"""The most labels that an error names."""
GENERIC = re.compile(r"LABEL_\d+")
NOT_RELEVANT = {"irrelevant", "notrelevant", "nonrelevant", "unrelated", "no", "false", "0", "nomatch"}
RELEVANT = {"relevant", "relevance", "related", "yes", "true", "1", "match"}
SCALES = {*RELEVANT, "label", "logit", "rank", "ranking", "relevancy", "score", "similarity"}
"""Names of one label alone."""
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a classification head.

    chosen: the label whose probability is the score; None if the only label, or the second of two, means relevance
    """

    count: int
    chosen: Label | None = None


def label_count(config: Config) -> int:
    """Labels of a head that scores relevance: 1, or 2 of which the second means relevant."""
    return read_labels(config, None).count


def read_labels(config: Config, name: str | None) -> Labels:
    """The labels of a classification head.

    name: the label that the user chooses; None for relevance

    Raises ModelError for a name that is none, and without one for a head that does not score relevance.
    """
    config.require("problem_type", *PROBLEM_TYPES)
    count = config.num_labels
    if name is not None:
        alone = config.entries.get("problem_type") == "multi_label_classification"
        return Labels(count, Label(_index(config, name, count), alone))
    if count not in (1, 2):
        raise ModelError(
            f"{config.source}: `num_labels` is {count}: a classifier of {count} labels ({_listed(config, count)}). A "
            "reranker has 1 (relevance) or 2 (irrelevant, relevant). Name the label whose probability is the score: "
            "--label NAME."
        )
    if count == 2:
        _expect_relevance(config)
    return Labels(count)


def _index(config: Config, name: str, count: int) -> int:
    names = [label.lower() for label in config.label_names or _generic(count)]
    if count < 2 or name.lower() not in names:
        raise ModelError(
            f"{config.source} has no label {shown(name)} (--label); its classifier's are {_listed(config, count)}."
            if count > 1
            else f"{config.source} describes a classifier of 1 label, which is the score; leave --label out."
        )
    return names.index(name.lower())


def _listed(config: Config, count: int) -> str:
    names = config.label_names or _generic(min(count, MOST_LISTED + 1))
    return ", ".join(name[:40] for name in names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")


def _generic(count: int) -> list[str]:
    """transformers' names for labels without names."""
    return [f"LABEL_{i}" for i in range(count)]


def _expect_relevance(config: Config) -> None:
    """Refuse two labels that do not say whether a document is relevant, such as the labels of a sentiment."""
    if config.entries.get("problem_type") == "multi_label_classification":
        raise ModelError(
            f"{config.source}: `problem_type` is multi_label_classification, whose 2 labels score two things; a "
            "reranker has 1 label, or 2 of which one holds."
        )
    names = config.label_names
    if names is None or all(GENERIC.fullmatch(name) for name in names):
        return
    first, second = (re.sub(r"[\W_]", "", name).lower() for name in names)
    if first not in NOT_RELEVANT or second not in RELEVANT:
        raise ModelError(
            f"{config.source}: `id2label` names {shown(names[0])} and {shown(names[1])}, which are no scale of "
            "relevance. Name the one whose probability is the score (--label), or if the second one means relevant, "
            "say so: --hf-overrides "
            """'{"id2label": {"0": "irrelevant", "1": "relevant"}}'."""
        )


def taken_labels(config: Config) -> str | None:
    """The meaning that `read_labels` takes labels to have, as a clause, where their names do not say it."""
    names = config.label_names or ()
    generic = all(GENERIC.fullmatch(name) for name in names)
    if config.num_labels == 2 and generic:
        return "its two labels have no names, and the second is taken to mean relevant"
    if len(names) == 1 and not generic and re.sub(r"[\W_]", "", names[0]).lower() not in SCALES:
        return f"its label {shown(names[0])} is taken to mean relevance"
    return None


def names_of(config: Config, labels: int) -> tuple[str, ...]:
    """The names of a classification head's labels; transformers' names if the configuration names no labels."""
    names = config.label_names or ()
    return names if len(names) == labels else tuple(f"LABEL_{i}" for i in range(labels))


def labels_activation(config: Config, labels: int, activation: Activation) -> Activation | Literal["softmax"]:
    """The activation of labels' logits by the configuration's `problem_type`; without one the softmax of several
    labels, and `activation` of one. Source: `get_act_fn` in vLLM's `layers/pooler/activations.py`."""
    problem = config.entries.get("problem_type")
    if problem == "regression":
        return "identity"
    if problem == "multi_label_classification":
        return "sigmoid"
    return activation if labels == 1 else "softmax"


ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Sigmoid": "sigmoid",
}


def declared_activation(config: Config, labels: int, default: Activation = "sigmoid") -> Activation:
    """The activation that a cross-encoder's authors declare for sentence-transformers, else `default`.

    `cross-encoder/ms-marco-*` checkpoints declare Identity: their published scores are logits. It is declared beside
    config.json, which comes first, or in it, where the older name counts only without the newer one. Of several labels
    the share of one is the score, whatever is declared.
    """
    section = config.entries.get("sentence_transformers")
    if section is not None and not isinstance(section, Mapping):
        raise config.wrong("sentence_transformers", "must be an object")
    declared = read_settings(Path(config.source).parent, "CrossEncoder").activation
    if declared is None and "activation_fn" in (section or {}):
        declared = (section or {})["activation_fn"]
    elif declared is None:
        declared = config.entries.get("sbert_ce_default_activation_function")
    if labels > 1:
        return "sigmoid"
    if declared is None:
        return default
    if not isinstance(declared, str) or declared not in ACTIVATIONS:
        raise ModelError(
            f"{config.source} (or {SETTINGS} beside it) declares the activation {shown(declared)} "
            "(`activation_fn`, `sbert_ce_default_activation_function`); torch's Sigmoid and Identity are supported."
        )
    return ACTIVATIONS[declared]
