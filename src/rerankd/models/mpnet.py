"""MPNet (Song et al., 2020): BERT without token types, with biases of distance that all layers share.

Model: all-mpnet-base-v2. Behaviour reference: `modeling_mpnet.py` in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from rerankd.layers.relative import Buckets
from rerankd.layers.spec import EmbeddingWeights, LayerWeights, RelativeWeights, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models import bert
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.encoders import cross_encoder, pooled
from rerankd.models.recipes import encoders
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import Stack

FIRST_POSITION = 2
"""The row of the position table where positions begin; the authors' code fixes it."""
BUCKETS = 32
"""Rows of the table of biases; the authors' code reads no others."""
NAMES = replace(
    bert.NAMES,
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
)


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes."""
    config.require("relative_attention_num_buckets", BUCKETS)
    plain = bert.spec_of(config)
    layer = replace(plain.layers[0], attention_bias=Buckets(BUCKETS))
    return TransformerSpec((layer,) * len(plain.layers), embedding_norm=plain.embedding_norm)


@dataclass(frozen=True, slots=True)
class Biases:
    """The biases of distance, one table for all layers: float32 [buckets, heads of the model]."""

    table: Tensor
    head_dim: int

    def __call__(self, layer: LayerWeights, weights: Weights) -> RelativeWeights:
        heads = len(layer.query.weight) // self.head_dim
        first = weights.shard.rank * heads
        return RelativeWeights(biases=self.table[:, first : first + heads])


def encoder(config: Config, weights: Weights) -> Stack:
    """The weights of the encoder."""
    weights.expect_count(config, "num_hidden_layers", config.layers(), "encoder.layer")
    words, most = config.size("vocab_size"), config.size("max_position_embeddings")
    embeddings = weights.scope("embeddings")
    embeddings.expect_size(config, "hidden_size", config.size("hidden_size"), "word_embeddings.weight", axis=1)
    embeddings.expect_size(config, "vocab_size", words, "word_embeddings.weight")
    embeddings.expect_size(config, "max_position_embeddings", most, "position_embeddings.weight")
    mlp = "encoder.layer.0.intermediate.dense.weight"
    weights.expect_size(config, "intermediate_size", config.size("intermediate_size"), mlp)
    spec = spec_of(config)
    layer = spec.layers[0]
    assert spec.embedding_norm is not None
    table = weights.tensor("encoder.relative_attention_bias.weight", BUCKETS, layer.heads)
    tables = EmbeddingWeights(
        words=embeddings.tensor("word_embeddings.weight", words, spec.hidden),
        positions=embeddings.tensor("position_embeddings.weight", most, spec.hidden)[FIRST_POSITION:],
        norm=embeddings.norm("LayerNorm", spec.hidden, spec.embedding_norm),
    )
    return Stack(spec, weights, NAMES, tables, relative=Biases(table, layer.head_dim))


def mpnet_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`MPNetForSequenceClassification`: dense, tanh, out_proj on `<s>`."""
    stack = encoder(config, weights.scope("mpnet"))
    return cross_encoder(config, weights, executor, stack, recipe, "classifier.dense", "classifier.out_proj")


def mpnet_pooled(config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe) -> TextModel:
    """`MPNetModel` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "mpnet")
    return pooled(config, token_id, executor, encoder(config, scope), recipe)


def positions(config: Config) -> int:
    """How many tokens have positions."""
    return max(plain_positions(config) - FIRST_POSITION, 1)


MODEL_TYPES = ("mpnet",)
CROSS_ENCODER = Architecture(MODEL_TYPES, (encoders.CROSS_ENCODER,), mpnet_cross_encoder, positions, spec_of)
POOLED = Architecture(MODEL_TYPES, encoders.POOLED, mpnet_pooled, positions, spec_of)
