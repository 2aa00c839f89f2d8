"""mxbai-rerank-v2: a Qwen2 decoder (Yang et al., 2024) that is asked for "0" or "1".

Behaviour reference: `modeling_qwen2.py` in transformers.
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
from rerankd.models.decoders import by_answers, layer_of, rotary_of, stacked
from rerankd.models.recipes.mxbai import MXBAI_RERANK
from rerankd.models.recipes.recipe import Recipe


def spec_of(config: Config, rotary: Rotary) -> TransformerSpec:
    """The decoder that a configuration describes: Llama's layers, with biases of query, key and value."""
    config.require("hidden_act", "silu")
    config.require("use_sliding_window", False, None)
    return stacked(config, replace(layer_of(config, rotary), qkv_bias=True))


def plain_spec(config: Config) -> TransformerSpec:
    """The decoder of a model that reads text."""
    return spec_of(config, rotary_of(config))


def qwen2_reranker(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`Qwen2ForCausalLM` by the logits of its answers, `Qwen2ForSequenceClassification` by its score rows."""
    return by_answers(config, weights, token_id, executor, recipe, plain_spec)


QWEN2 = Architecture(("qwen2",), (MXBAI_RERANK,), qwen2_reranker, plain_positions, plain_spec)
