"""bge-reranker-v2-gemma: a Gemma decoder (Gemma Team, 2024) that is asked for "Yes".

Behaviour reference: `modeling_gemma.py` in transformers.
"""

from __future__ import annotations

from dataclasses import replace

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import by_answers, layer_of, rotary_of, stacked
from rerankd.models.recipes.gemma import BGE_RERANKER_GEMMA
from rerankd.models.recipes.recipe import Recipe


def spec_of(config: Config) -> TransformerSpec:
    """The decoder that a configuration describes: Llama's layers with a gate of GELU, norms whose weights are stored
    minus 1, and scaled embeddings.

    Gemma was released with `hidden_act` "gelu", and means the approximation by tanh all the same.
    """
    config.require("hidden_act", "gelu_pytorch_tanh", "gelu")
    config.require("hidden_activation", "gelu_pytorch_tanh", None)
    config.require("attention_bias", False, None)
    config.require("use_bidirectional_attention", None, False)
    layer = layer_of(config, rotary_of(config))
    layer = replace(layer, norm=replace(layer.norm, offset=1.0), activation="gelu_tanh")
    return stacked(config, layer, embedding_scale=layer.hidden**0.5)


def gemma_reranker(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`GemmaForCausalLM` by the logit of its answer, `GemmaForSequenceClassification` by its score rows."""
    return by_answers(config, weights, token_id, executor, recipe, spec_of)


GEMMA = Architecture(("gemma",), (BGE_RERANKER_GEMMA,), gemma_reranker, plain_positions, spec_of)
