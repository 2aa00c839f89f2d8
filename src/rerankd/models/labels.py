"""Whether the labels of a classifier score relevance, and what its authors make of the logit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rerankd.core import ModelError
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.sentence_transformers import SETTINGS, read_settings
from rerankd.models.heads import Activation

GENERIC = re.compile(r"LABEL_\d+")
NOT_RELEVANT = {"irrelevant", "notrelevant", "nonrelevant", "unrelated", "no", "false", "0", "nomatch"}
RELEVANT = {"relevant", "relevance", "related", "yes", "true", "1", "match"}
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


def label_count(config: Config) -> int:
    """Labels of a classification head: 1, or 2 of which the second means relevant; no other head scores relevance."""
    count = config.num_labels
    if count not in (1, 2):
        raise ModelError(
            f"{config.source} describes a classifier of {count} labels (`id2label`, `num_labels`); a reranker has 1 "
            "(relevance) or 2 (irrelevant, relevant)."
        )
    config.require("problem_type", *PROBLEM_TYPES)
    if count == 2:
        _expect_relevance(config)
    return count


def _expect_relevance(config: Config) -> None:
    """Refuse two labels that are no answer to whether a document is relevant, such as those of a sentiment."""
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
            "relevance. If the second one means relevant, say so: --hf-overrides "
            """'{"id2label": {"0": "irrelevant", "1": "relevant"}}'."""
        )


ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Sigmoid": "sigmoid",
}


def declared_activation(config: Config, labels: int, default: Activation = "sigmoid") -> Activation:
    """The activation that a cross-encoder's authors declare for sentence-transformers, else `default`.

    `cross-encoder/ms-marco-*` checkpoints declare Identity: their published scores are logits. It is declared beside
    config.json, which comes first, or in it, where the older name counts only without the newer one. Of two labels the
    second one's share is the score, whatever is declared.
    """
    section = config.entries.get("sentence_transformers")
    if section is not None and not isinstance(section, Mapping):
        raise config.wrong("sentence_transformers", "must be an object")
    declared = read_settings(Path(config.source).parent, "CrossEncoder").activation
    if declared is None and "activation_fn" in (section or {}):
        declared = (section or {})["activation_fn"]
    elif declared is None:
        declared = config.entries.get("sbert_ce_default_activation_function")
    if labels == 2:
        return "sigmoid"
    if declared is None:
        return default
    if not isinstance(declared, str) or declared not in ACTIVATIONS:
        raise ModelError(
            f"{config.source} (or {SETTINGS} beside it) declares the activation {shown(declared)} "
            "(`activation_fn`, `sbert_ce_default_activation_function`); torch's Sigmoid and Identity are supported."
        )
    return ACTIVATIONS[declared]
