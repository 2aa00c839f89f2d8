"""The head of a decoder: the tokens whose logits make the score, by overrides, by the folder, or by its own classifier.

Reference: `SequenceClassificationConfig` and `seq_cls_model_loader` in vLLM's `model_executor/models/adapters.py`, and
`LogitScore` in sentence-transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerankd.core import ModelError
from rerankd.models.base import TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.files import SAFETENSORS
from rerankd.models.checkpoint.modules import read_logit_score
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.heads import Activation, TokenHead
from rerankd.models.labels import declared_activation, label_count
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import Stack
from rerankd.models.vocabulary import is_tied, vocabulary_head

log = logging.getLogger("rerankd")

METHODS = {"from_2_way_softmax": 2, "no_post_processing": 1}
"""vLLM's names of the two ways to score, and the number of tokens of each."""


def token_head(
    config: Config, weights: Weights, base: Weights, stack: Stack, token_id: TokenIds, recipe: Recipe
) -> TokenHead:
    """The head of a decoder whose layers and embedding, `stack`, lie below `base`."""
    assert stack.embedding is not None
    relevance, activation = relevance_head(config, weights, base, stack.spec.hidden, token_id, recipe)
    return TokenHead(relevance, vocabulary_head(config, weights, stack.embedding.words), activation)


def relevance_head(
    config: Config, weights: Weights, base: Weights, hidden: int, token_id: TokenIds, recipe: Recipe
) -> tuple[Tensor, Activation]:
    """The rows that score a last hidden state, float32 [1, hidden] or [2, hidden] for (no, yes), and the activation.

    A converted checkpoint has them as `score.weight`. Of an original checkpoint only the answers' rows of the
    vocabulary head are read.
    """
    if "score.weight" in weights:
        labels = weights.height("score.weight")
        if labels not in (1, 2):
            raise ModelError(f"`score.weight` has {labels} rows; a reranker has 1, or 2 for (no, yes).")
        if config.entries.get("id2label") is not None or config.entries.get("num_labels") is not None:
            weights.expect_size(config, "num_labels", label_count(config), "score.weight")
        if read_logit_score(Path(config.source).parent) is not None:
            raise ModelError(
                f"{config.source}: the weights have a classifier (`score.weight`), but modules.json lists LogitScore, "
                "which scores by the vocabulary; remove the one that is wrong."
            )
        if named_tokens(config) is not None:
            log.warning("`classifier_from_token` has no effect: the checkpoint has a classifier of its own.")
        head = weights.tensor("score.weight", labels, hidden, dtype=torch.float32)
        return head, declared_activation(config, labels)
    answers = read_answers(config, token_id, recipe)
    return _answer_rows(config, weights, base, hidden, answers.ids) / answers.divisor, answers.activation


def _answer_rows(config: Config, weights: Weights, base: Weights, hidden: int, ids: tuple[int, ...]) -> Tensor:
    """Rows of the vocabulary's head: float32 [ids, hidden]."""
    embedding = base.rows("embed_tokens.weight", ids, hidden)
    if "lm_head.weight" not in weights:
        if not is_tied(config, weights):
            raise ModelError(
                f"{config.source}: `tie_word_embeddings` is false, but the weights have no `lm_head.weight`."
            )
        return embedding
    rows = weights.rows("lm_head.weight", ids, hidden)
    if is_tied(config, weights) and not torch.equal(rows, embedding):
        raise ModelError(
            f"{config.source}: `tie_word_embeddings` is true, but `lm_head.weight` is not the embedding; set it to "
            "false."
        )
    return rows


@dataclass(frozen=True, slots=True)
class Answers:
    """The answer tokens of a decoder.

    ids: of (no, yes), whose difference of logits is the logit of the score, or of one token, whose logit is
    divisor: the divisor of that logit
    """

    ids: tuple[int, ...]
    divisor: float
    activation: Activation


def read_answers(config: Config, token_id: TokenIds, recipe: Recipe) -> Answers:
    """The answers of a decoder without a classifier.

    `classifier_from_token` names the answers; `method`, or else their number, says which of the two kinds it is.
    Without it the answers are those of the folder's LogitScore, or else the recipe's. The recipe's divisor and
    activation are for its own answers.
    """
    tokens = named_tokens(config)
    by_recipe = tokens is None and read_logit_score(Path(config.source).parent) is None
    return Answers(
        ids=_ids(config, token_id, recipe),
        divisor=recipe.divisor if by_recipe else 1.0,
        activation=declared_activation(config, 1, recipe.activation if by_recipe else "sigmoid"),
    )


def _ids(config: Config, token_id: TokenIds, recipe: Recipe) -> tuple[int, ...]:
    """The ids of `read_answers`."""
    tokens = named_tokens(config)
    if tokens is None:
        return read_logit_score(Path(config.source).parent) or tuple(map(token_id, recipe.answers))
    try:
        ids = tuple(token_id(token) for token in tokens)
    except ModelError as error:
        raise ModelError(f"{config.source}: `classifier_from_token` cannot be applied. {error}") from None
    if len(set(ids)) < len(ids):
        raise config.wrong("classifier_from_token", "must be two tokens that differ")
    return ids


def named_tokens(config: Config) -> tuple[str, ...] | None:
    """The tokens of `classifier_from_token`, one or two; None if there are none."""
    config = _by_top_or_text(config)
    tokens, method = config.entries.get("classifier_from_token"), config.entries.get("method")
    original = config.flag("is_original_qwen3_reranker")
    if method is not None and (not isinstance(method, str) or method not in METHODS):
        raise config.wrong("method", f"must be {' or '.join(METHODS)}")
    if tokens is None:
        if method is not None:
            raise ModelError(f"{config.source}: `method` needs the tokens that `classifier_from_token` names; add it.")
        return None
    if not isinstance(tokens, (list, tuple)) or not all(isinstance(token, str) for token in tokens):
        raise config.wrong("classifier_from_token", 'must be a list of tokens such as ["no", "yes"]')
    if len(tokens) not in (1, 2):
        raise config.wrong("classifier_from_token", 'must be two tokens (["no", "yes"]) or one (["Yes"])')
    needed = 2 if original else METHODS.get(method or "", len(tokens))
    if len(tokens) != needed:
        reason = "`is_original_qwen3_reranker`" if original else f"the `method` {method}"
        raise config.wrong("classifier_from_token", f"must be {('one token', 'two tokens')[needed - 1]} for {reason}")
    return tuple(tokens)


def has_classifier(folder: Path, name: str) -> bool:
    """Whether a decoder of the architecture `name` has a classifier of its own, by its folder.

    Safetensors list their tensors without being read; for other files the name of the class decides.
    """
    if any((folder / name).is_file() for name in SAFETENSORS):
        return "score.weight" in Checkpoint(folder).names
    return name.endswith("ForSequenceClassification")


def is_original_qwen3(config: Config) -> bool:
    """Whether the configuration says, in vLLM's words, that it is a Qwen3-Reranker as published."""
    return _by_top_or_text(config).flag("is_original_qwen3_reranker") is True


def _by_top_or_text(config: Config) -> Config:
    """The entries as vLLM looks them up: in the configuration, else in its `text_config`."""
    text: Any = config.entries.get("text_config")
    below = text if isinstance(text, Mapping) else {}
    names = ("classifier_from_token", "method", "is_original_qwen3_reranker")
    return Config({name: config.entries.get(name, below.get(name)) for name in names}, config.source)
