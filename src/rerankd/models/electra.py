"""ELECTRA (Clark et al., 2020) as a cross-encoder: BERT with another classifier.

Behaviour reference: `modeling_electra.py` in transformers.
"""

from __future__ import annotations

from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.bert import encoder, spec_of
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.encoders import cross_encoder, pooled
from rerankd.models.recipes import encoders
from rerankd.models.recipes.recipe import Recipe


def electra_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`ElectraForSequenceClassification`: dense and GELU on `[CLS]`, then out_proj."""
    config.require("embedding_size", config.size("hidden_size"))
    stack = encoder(config, weights.scope("electra"), 0)
    return cross_encoder(config, weights, executor, stack, recipe, "classifier.dense", "classifier.out_proj", "gelu")


def electra_pooled(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`ElectraModel` in a sentence-transformers folder."""
    config.require("embedding_size", config.size("hidden_size"))
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "electra")
    return pooled(config, token_id, executor, encoder(config, scope, 0), recipe)


CROSS_ENCODER = Architecture(("electra",), (encoders.CROSS_ENCODER,), electra_cross_encoder, plain_positions, spec_of)
POOLED = Architecture(("electra",), encoders.POOLED, electra_pooled, plain_positions, spec_of)
