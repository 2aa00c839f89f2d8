"""ModernBERT (Warner et al., 2024): rotary positions, local attention in most layers, a gated MLP.

Models: gte-reranker-modernbert, granite-embedding-reranker, ettin-reranker. Behaviour reference:
    `modeling_modernbert.py` in transformers.
"""

from __future__ import annotations

import torch

from rerankd.core import ModelError
from rerankd.layers.spec import EmbeddingWeights, Norm
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.encoders import pooled
from rerankd.models.heads import BETWEEN
from rerankd.models.labels import declared_activation, read_labels
from rerankd.models.modernbert_shape import spec_of
from rerankd.models.pooling import Pooling
from rerankd.models.recipes import encoders
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.sequential import SequentialHead
from rerankd.models.stack import LayerNames, Stack
from rerankd.models.steps import SCORES, LayerNorm, Linear, Steps

NAMES = LayerNames(
    layer="layers.{}",
    qkv=("attn.Wqkv",),
    out="attn.Wo",
    up=("mlp.Wi",),
    down="mlp.Wo",
    attention_norm="attn_norm",
    mlp_norm="mlp_norm",
)


def encoder(config: Config, weights: Weights) -> Stack:
    """The weights of the encoder."""
    weights.expect_count(config, "num_hidden_layers", config.layers(), "layers")
    hidden, words = config.size("hidden_size"), config.size("vocab_size")
    weights.expect_size(config, "hidden_size", hidden, "embeddings.tok_embeddings.weight", axis=1)
    spec = spec_of(config)
    weights.expect_size(config, "vocab_size", words, "embeddings.tok_embeddings.weight")
    weights.expect_size(config, "intermediate_size", spec.layers[0].mlp, "layers.0.mlp.Wo.weight", axis=1)
    assert spec.embedding_norm is not None
    assert spec.final_norm is not None
    table = weights.tensor("embeddings.tok_embeddings.weight", words, spec.hidden)
    tables = EmbeddingWeights(table, norm=weights.norm("embeddings.norm", spec.hidden, spec.embedding_norm))
    return Stack(spec, weights, NAMES, tables, weights.norm("final_norm", spec.hidden, spec.final_norm))


def modernbert_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`ModernBertForSequenceClassification`: pooled, then dense, GELU and LayerNorm, then the classifier."""
    stack = encoder(config, weights.scope("model"))
    labels, hidden = read_labels(config, recipe.label), stack.spec.hidden
    count = labels.count
    weights.expect_size(config, "num_labels", count, "classifier.weight")
    pooling, between = config.get("classifier_pooling", str, "cls"), config.get("classifier_activation", str, "gelu")
    if pooling not in ("cls", "mean") or between not in BETWEEN:
        raise ModelError(f"{config.source}: the classifier's pooling or activation is {shown((pooling, between))}.")
    dense = weights.affine("head.dense", hidden, hidden, config.flag("classifier_bias") is True, torch.float32)
    norm = Norm("layer", config.epsilon("norm_eps", 1e-5))
    steps = (
        Linear(dense, between),
        LayerNorm(weights.norm("head.norm", hidden, norm), norm.eps),
        Linear(weights.affine("classifier", count, hidden, True, torch.float32)),
    )
    head = SequentialHead(
        Pooling(("mean" if pooling == "mean" else "cls",)),
        Steps(steps, count, SCORES),
        declared_activation(config, count),
        labels.chosen,
    )
    return TextModel(stack.spec, executor.transformer(stack.spec, stack), head)


def modernbert_pooled(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`ModernBertModel` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.tok_embeddings.weight", "", "model")
    return pooled(config, token_id, executor, encoder(config, scope), recipe)


MODEL_TYPES = ("modernbert",)
CROSS_ENCODER = Architecture(MODEL_TYPES, (encoders.CROSS_ENCODER,), modernbert_cross_encoder, plain_positions, spec_of)
POOLED = Architecture(MODEL_TYPES, encoders.POOLED, modernbert_pooled, plain_positions, spec_of)
