"""Qwen3-Reranker: a Qwen3 decoder (Yang et al., 2025) that is asked for "yes" or "no".

zerank and ctxl-rerank are Qwen3 decoders with other recipes. Behaviour reference: `modeling_qwen3.py` in transformers
and the scoring script on the model's card.
"""

from __future__ import annotations

from dataclasses import replace

from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import by_answers, decoder, expect_in, layer_of, rotary_of, stacked
from rerankd.models.encoders import pooled
from rerankd.models.recipes.ctxl import CTXL_RERANK
from rerankd.models.recipes.encoders import BI_ENCODER, LATE_INTERACTION
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.zerank import ZERANK


def spec_of(config: Config, rotary: Rotary) -> TransformerSpec:
    """The decoder that a configuration describes: Llama's layers, with norms of each head's query and key."""
    config.require("hidden_act", "silu")
    config.require("use_sliding_window", False, None)
    config.require("attention_bias", False, None)
    layer = layer_of(config, rotary)
    return stacked(config, replace(layer, qk_norm=layer.norm))


def plain_spec(config: Config) -> TransformerSpec:
    """The decoder of a model that reads text."""
    return spec_of(config, rotary_of(config))


def qwen3_reranker(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`Qwen3ForCausalLM` by the logits of its answers, `Qwen3ForSequenceClassification` by its score rows, and either
    by the similarity of embeddings."""
    if not recipe.pairs:
        return qwen3_embedding(config, weights, token_id, executor, recipe)
    return by_answers(config, weights, token_id, executor, recipe, plain_spec)


def qwen3_embedding(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`Qwen3Model` in a sentence-transformers folder: Qwen3-Embedding."""
    base = weights.scope_holding("embed_tokens.weight", "model", "")
    expect_in(config, base)
    return pooled(config, token_id, executor, decoder(config, base, plain_spec(config)), recipe)


QWEN3 = Architecture(
    ("qwen3",),
    (QWEN3_RERANKER, ZERANK, CTXL_RERANK, BI_ENCODER, LATE_INTERACTION),
    qwen3_reranker,
    plain_positions,
    spec=plain_spec,
)
EMBEDDING = Architecture(("qwen3",), (BI_ENCODER, LATE_INTERACTION), qwen3_embedding, plain_positions, spec=plain_spec)
