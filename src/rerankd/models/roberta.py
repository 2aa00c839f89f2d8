"""RoBERTa (Liu et al., 2019) and XLM-R (Conneau et al., 2019): BERT with other names and positions; BGE
rerankers, and jina-reranker-v2.

Behaviour reference: `modeling_xlm_roberta.py` in transformers. The two differ in their tokenizers only.
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
from rerankd.models.stack import LayerNames

FLASH_NAMES = LayerNames(
    layer="encoder.layers.{}",
    qkv=("mixer.Wqkv",),
    out="mixer.out_proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    attention_norm="norm1",
    mlp_norm="norm2",
)
"""Names of the same layers in jina-reranker-v2, after its authors' code for flash attention."""


def first_position(config: Config) -> int:
    """The row of the position table where positions begin: behind the padding id."""
    most = config.size("max_position_embeddings", least=3)
    first = config.size("pad_token_id", 1, least=0) + 1
    if first > most - 2:
        raise config.wrong("pad_token_id", f"must leave some of the {most} positions (`max_position_embeddings`)")
    return first


def roberta_cross_encoder(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`XLMRobertaForSequenceClassification`, `RobertaForSequenceClassification`: dense, tanh, out_proj on `<s>`."""
    scope = weights.scope("roberta")
    if "emb_ln.weight" in scope:
        stack = encoder(config, scope, first_position(config), FLASH_NAMES, "emb_ln")
    else:
        stack = encoder(config, scope, first_position(config))
    return cross_encoder(config, weights, executor, stack, recipe, "classifier.dense", "classifier.out_proj")


def roberta_pooled(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`XLMRobertaModel` in a sentence-transformers folder."""
    scope = weights.scope_holding("embeddings.word_embeddings.weight", "", "roberta")
    return pooled(config, token_id, executor, encoder(config, scope, first_position(config)), recipe)


def positions(config: Config) -> int:
    """How many tokens have positions."""
    return plain_positions(config) - first_position(config)


MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
CROSS_ENCODER = Architecture(MODEL_TYPES, (encoders.CROSS_ENCODER,), roberta_cross_encoder, positions, spec_of)
POOLED = Architecture(MODEL_TYPES, encoders.POOLED, roberta_pooled, positions, spec_of)
