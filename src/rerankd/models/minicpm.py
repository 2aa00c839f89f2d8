"""bge-reranker-v2-minicpm-layerwise: MiniCPM (Hu et al., 2024), with a row of scores after each of its later layers.

Behaviour reference: `modeling_minicpm_reranker.py` in the package FlagEmbedding, which the model's folder has too.
"""

from __future__ import annotations

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.compression import RATIO
from rerankd.models.decoders import decoder, expect_in, layer_of, rotary_of, stacked
from rerankd.models.layerwise import cut, cutoff_of, score_row
from rerankd.models.recipes.layerwise import BGE_RERANKER_LAYERWISE
from rerankd.models.recipes.recipe import Recipe


def spec_of(config: Config) -> TransformerSpec:
    """The layers up to the one that is scored: Llama's, with scaled embeddings."""
    config.require("hidden_act", "silu")
    config.require("attention_bias", False, None)
    config.require("head_type", "simple")
    config.require("head_multi", True)
    config.require(RATIO, 1, None)
    whole = stacked(config, layer_of(config, rotary_of(config)), config.get("scale_emb", float, 1.0))
    return cut(whole, cutoff_of(config))


def minicpm_layerwise(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`LayerWiseMiniCPMForCausalLM`. A layer's output is scaled by the number of all layers, also after a cut."""
    base = weights.scope("model")
    expect_in(config, base)
    spec = spec_of(config)
    scale = config.get("scale_depth", float, 1.0) / config.layers() ** 0.5
    stack = decoder(config, base, spec, output_scale=scale)
    cutoff = cutoff_of(config)
    head = score_row(config, weights, base, cutoff, cutoff - config.size("start_layer"), recipe)
    return TextModel(spec, executor.transformer(spec, stack), head)


LAYERWISE = Architecture(("minicpm",), (BGE_RERANKER_LAYERWISE,), minicpm_layerwise, plain_positions, spec_of)
