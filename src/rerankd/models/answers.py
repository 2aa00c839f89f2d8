"""Which tokens' logits make a decoder's score, by the overrides that vLLM knows or by a sentence-transformers folder.

Reference: `SequenceClassificationConfig` and `seq_cls_model_loader` in vLLM's `model_executor/models/adapters.py`, and
`LogitScore` in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerankd.core import ModelError
from rerankd.models.base import TokenIds
from rerankd.models.config import Config
from rerankd.models.modules import read_logit_score

METHODS = {"from_2_way_softmax": 2, "no_post_processing": 1}
"""vLLM's names of the two ways to score, and how many tokens each takes for one score."""


def answer_tokens(config: Config, token_id: TokenIds) -> tuple[int, ...]:
    """The ids of (no, yes), whose difference of logits is the score's logit, or of the one token whose logit it is.

    `classifier_from_token` names them, `method` says which of the two it is, else their number does. Without either
    they are those of the folder's LogitScore, else "no" and "yes".
    """
    tokens = named_tokens(config)
    if tokens is None:
        return read_logit_score(Path(config.source).parent) or (token_id("no"), token_id("yes"))
    try:
        ids = tuple(token_id(token) for token in tokens)
    except ModelError as error:
        raise ModelError(f"{config.source}: `classifier_from_token` cannot be met. {error}") from None
    if len(set(ids)) < len(ids):
        raise config.wrong("classifier_from_token", "must be two tokens that differ")
    return ids


def named_tokens(config: Config) -> tuple[str, ...] | None:
    """The tokens of `classifier_from_token`, one or two; None where there are none."""
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


def _by_top_or_text(config: Config) -> Config:
    """The entries as vLLM looks them up: in the configuration, else in its `text_config`."""
    text: Any = config.entries.get("text_config")
    below = text if isinstance(text, Mapping) else {}
    names = ("classifier_from_token", "method", "is_original_qwen3_reranker")
    return Config({name: config.entries.get(name, below.get(name)) for name in names}, config.source)
