"""DistilBERT (Sanh et al., 2019) as a cross-encoder: BERT without token types, by other names.

Behaviour reference: `modeling_distilbert.py` in transformers.
"""

from __future__ import annotations

from rerankd.layers.spec import EmbeddingWeights, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models import bert
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.encoders import cross_encoder, pooled
from rerankd.models.recipes import encoders
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import LayerNames, Stack

NAMES = LayerNames(
    layer="transformer.layer.{}",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    attention_norm="sa_layer_norm",
    mlp_norm="output_layer_norm",
)
KEYS = {
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}
"""BERT's names of the entries of a configuration."""


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes."""
    # The authors' code fixes the epsilon.
    entries = {KEYS.get(name, name): value for name, value in config.entries.items()} | {"layer_norm_eps": 1e-12}
    return bert.spec_of(Config(entries, config.source))


def encoder(config: Config, weights: Weights) -> Stack:
    """The weights of the encoder."""
    weights.expect_count(config, "n_layers", config.layers("n_layers"), "transformer.layer")
    spec = spec_of(config)
    words, most = config.size("vocab_size"), config.size("max_position_embeddings")
    embeddings = weights.scope("embeddings")
    embeddings.expect_size(config, "dim", spec.hidden, "word_embeddings.weight", axis=1)
    embeddings.expect_size(config, "vocab_size", words, "word_embeddings.weight")
    embeddings.expect_size(config, "max_position_embeddings", most, "position_embeddings.weight")
    weights.expect_size(config, "hidden_dim", spec.layers[0].mlp, "transformer.layer.0.ffn.lin1.weight")
    assert spec.embedding_norm is not None
    tables = EmbeddingWeights(
        words=embeddings.tensor("word_embeddings.weight", words, spec.hidden),
        positions=embeddings.tensor("position_embeddings.weight", most, spec.hidden),
        norm=embeddings.norm("LayerNorm", spec.hidden, spec.embedding_norm),
    )
    return Stack(spec, weights, NAMES, tables)


def distilbert_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`DistilBertForSequenceClassification`: dense and ReLU on `[CLS]`, then the classifier."""
    stack = encoder(config, weights.scope("distilbert"))
    return cross_encoder(config, weights, executor, stack, recipe, "pre_classifier", "classifier", "relu")


def distilbert_pooled(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`DistilBertModel` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "distilbert")
    return pooled(config, token_id, executor, encoder(config, scope), recipe)


CROSS_ENCODER = Architecture(
    ("distilbert",), (encoders.CROSS_ENCODER,), distilbert_cross_encoder, plain_positions, spec_of
)
POOLED = Architecture(("distilbert",), encoders.POOLED, distilbert_pooled, plain_positions, spec_of)
