"""mGTE (Zhang et al., 2024): BERT with rotary positions and a gated MLP, as a cross-encoder.

Behaviour reference: `modeling_gte.py` in transformers, and the authors' code (`Alibaba-NLP/new-impl`), whose names the
weights have.
"""

from __future__ import annotations

from dataclasses import replace

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
    layer="encoder.layer.{}",
    qkv=("attention.qkv_proj",),
    out="attention.o_proj",
    up=("mlp.up_gate_proj",),
    down="mlp.down_proj",
    attention_norm="attn_ln",
    mlp_norm="mlp_ln",
    gate_last=True,
    up_bias=False,
)


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes."""
    config.require("layer_norm_type", "layer_norm")
    config.require("logn_attention_scale", False, None)
    config.require("pack_qkv", True)
    config.require("position_embedding_type", "rope")
    plain = bert.spec_of(Config({**config.entries, "position_embedding_type": None}, config.source))
    head_dim = plain.layers[0].head_dim
    config.require("rotary_emb_dim", None, head_dim)
    layer = replace(plain.layers[0], rotary=config.rope().rotary(head_dim), gated=True)
    return TransformerSpec((layer,) * len(plain.layers), embedding_norm=plain.embedding_norm)


def encoder(config: Config, weights: Weights) -> Stack:
    """The weights of the encoder."""
    weights.expect_count(config, "num_hidden_layers", config.layers(), "encoder.layer")
    words, types = config.size("vocab_size"), config.size("type_vocab_size", 1, least=0)
    embeddings = weights.scope("embeddings")
    embeddings.expect_size(config, "hidden_size", config.size("hidden_size"), "word_embeddings.weight", axis=1)
    spec = spec_of(config)
    embeddings.expect_size(config, "vocab_size", words, "word_embeddings.weight")
    mlp = "encoder.layer.0.mlp.down_proj.weight"
    weights.expect_size(config, "intermediate_size", spec.layers[0].mlp, mlp, axis=1)
    assert spec.embedding_norm is not None
    tables = EmbeddingWeights(
        words=embeddings.tensor("word_embeddings.weight", words, spec.hidden),
        types=embeddings.tensor("token_type_embeddings.weight", types, spec.hidden) if types else None,
        norm=embeddings.norm("LayerNorm", spec.hidden, spec.embedding_norm),
    )
    return Stack(spec, weights, NAMES, tables)


def gte_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`NewForSequenceClassification`, `GteForSequenceClassification`: tanh pooler on `<s>`, then the classifier."""
    prefix = "new" if "new.embeddings.word_embeddings.weight" in weights else "gte"
    stack = encoder(config, weights.scope(prefix))
    return cross_encoder(config, weights, executor, stack, recipe, f"{prefix}.pooler.dense", "classifier")


def gte_pooled(config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe) -> TextModel:
    """`NewModel`, `GteModel` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "new", "gte")
    return pooled(config, token_id, executor, encoder(config, scope), recipe)


CROSS_ENCODER = Architecture(("new", "gte"), (encoders.CROSS_ENCODER,), gte_cross_encoder, plain_positions, spec_of)
POOLED = Architecture(("new", "gte"), encoders.POOLED, gte_pooled, plain_positions, spec_of)
