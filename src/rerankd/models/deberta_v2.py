"""DeBERTa-v2 and v3 (He et al., 2021, 2023): BERT with disentangled attention, as a cross-encoder.

Behaviour reference: `modeling_deberta_v2.py` in transformers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from rerankd.layers.spec import EmbeddingWeights, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models import bert
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.deberta_tables import RelativeTables, kinds_of, span_of
from rerankd.models.encoders import cross_encoder, pooled
from rerankd.models.recipes import encoders
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import Stack

NAMES = replace(bert.NAMES, qkv=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"))


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes."""
    config.require("relative_attention", True)
    config.require("conv_kernel_size", 0, None)
    config.require("attention_head_size", None, config.size("hidden_size") // config.size("num_attention_heads"))
    plain, tables = bert.spec_of(config), kinds_of(config)
    scale = span_of(config).logits_scale(plain.layers[0].head_dim, len(tables))
    layer = replace(plain.layers[0], attention_bias=span_of(config), scale=scale)
    return TransformerSpec((layer,) * len(plain.layers), embedding_norm=plain.embedding_norm)


def encoder(config: Config, weights: Weights) -> Stack:
    """The weights of the encoder."""
    weights.expect_count(config, "num_hidden_layers", config.layers(), "encoder.layer")
    words, hidden = config.size("vocab_size"), config.size("hidden_size")
    width = config.size("embedding_size", hidden)
    embeddings = weights.scope("embeddings")
    embeddings.expect_size(config, "embedding_size", width, "word_embeddings.weight", axis=1)
    embeddings.expect_size(config, "vocab_size", words, "word_embeddings.weight")
    mlp = "encoder.layer.0.intermediate.dense.weight"
    weights.expect_size(config, "intermediate_size", config.size("intermediate_size"), mlp)
    spec = spec_of(config)
    assert spec.embedding_norm is not None

    def table(name: str, rows: int) -> torch.Tensor:
        stored = embeddings.tensor(f"{name}.weight", rows, width)
        # The tables are summed, then projected: the sum of the projected tables is the same.
        return stored if width == hidden else F.linear(stored, embeddings.tensor("embed_proj.weight", hidden, width))

    types, most = config.size("type_vocab_size", 0, least=0), config.size("max_position_embeddings")
    has_positions = config.flag("position_biased_input") is not False
    tables = EmbeddingWeights(
        words=table("word_embeddings", words),
        positions=table("position_embeddings", most) if has_positions else None,
        types=table("token_type_embeddings", types) if types else None,
        norm=embeddings.norm("LayerNorm", hidden, spec.embedding_norm),
    )
    return Stack(spec, weights, NAMES, tables, relative=RelativeTables(config, weights.scope("encoder"), spec))


def deberta_v2_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`DebertaV2ForSequenceClassification`: dense and `pooler_hidden_act` on `[CLS]`, then the classifier."""
    stack = encoder(config, weights.scope("deberta"))
    between = config.get("pooler_hidden_act", str, "gelu")
    config.require("pooler_hidden_size", None, stack.spec.hidden)
    return cross_encoder(config, weights, executor, stack, recipe, "pooler.dense", "classifier", between)


def deberta_v2_pooled(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`DebertaV2Model` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "deberta")
    return pooled(config, token_id, executor, encoder(config, scope), recipe)


CROSS_ENCODER = Architecture(
    ("deberta-v2",), (encoders.CROSS_ENCODER,), deberta_v2_cross_encoder, plain_positions, spec_of
)
POOLED = Architecture(("deberta-v2",), encoders.POOLED, deberta_v2_pooled, plain_positions, spec_of)
