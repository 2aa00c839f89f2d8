"""bge-reranker-v2.5-gemma2-lightweight: Gemma 2 (Gemma Team, 2024), which may be scored after fewer layers than it has.

Its later layers may read several tokens of a document as one: see `compression`.

Behaviour reference: `modeling_gemma2.py` in transformers, and `gemma_model.py` in the package FlagEmbedding.
FlagEmbedding reads the first row of scores after any layer, and its attention does not cap logits, since
scaled_dot_product_attention has no cap. Both are so here.
"""

from __future__ import annotations

from dataclasses import replace

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.compression import CompressingModel, Compression
from rerankd.models.decoders import NAMES, decoder, expect_in, layer_of, rotary_of, stacked
from rerankd.models.layerwise import cut, cutoff_of, score_row
from rerankd.models.recipes.layerwise import BGE_RERANKER_LIGHTWEIGHT
from rerankd.models.recipes.recipe import Recipe

CAP = "final_logit_softcapping"
GEMMA2 = replace(
    NAMES,
    attention_output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
)


def spec_of(config: Config) -> TransformerSpec:
    """The layers up to the one that is scored: Gemma's, with norms behind attention and MLP too."""
    config.require("hidden_act", "gelu_pytorch_tanh", "gelu")
    config.require("hidden_activation", "gelu_pytorch_tanh", None)
    config.require("attention_bias", False, None)
    config.require("layer_wise", True)
    layer = layer_of(config, rotary_of(config))
    layer = replace(
        layer,
        norm=replace(layer.norm, offset=1.0),
        activation="gelu_tanh",
        scale=config.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
        output_norms=True,
    )
    whole = stacked(config, layer, embedding_scale=layer.hidden**0.5)
    layers = [
        replace(layer, window=config.size("sliding_window", 4096) - 1) if slides else layer
        for slides in _sliding(config, len(whole.layers))
    ]
    spec = cut(replace(whole, layers=tuple(layers)), cutoff_of(config, config.size("layer_sep")))
    # A wrong entry is found before weights are read.
    Compression.of(config, len(spec.layers))
    return spec


def _cap(config: Config) -> float | None:
    """The bound of the score; null for none."""
    if config.entries.get(CAP, ...) is None:
        return None
    cap = config.get(CAP, float, 30.0)
    if cap <= 0:
        raise config.wrong(CAP, "must be more than 0, or null")
    return cap


def _sliding(config: Config, layers: int) -> list[bool]:
    """The layers with a window: every second layer from the first on, unless `layer_types` says otherwise."""
    kinds = config.entries.get("layer_types")
    if kinds is None:
        return [i % 2 == 0 for i in range(layers)]
    if not isinstance(kinds, (list, tuple)) or len(kinds) != layers:
        raise config.wrong("layer_types", f"must be a list of {layers} kinds")
    if not all(kind in ("sliding_attention", "full_attention") for kind in kinds):
        raise config.wrong("layer_types", "must be sliding_attention or full_attention each")
    return [kind == "sliding_attention" for kind in kinds]


def gemma2_lightweight(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel | CompressingModel:
    """`CostWiseGemmaForCausalLM`."""
    base = weights.scope("model")
    expect_in(config, base)
    spec = spec_of(config)
    stack = decoder(config, base, spec, GEMMA2)
    head = score_row(config, weights, base, len(spec.layers), 0, recipe, _cap(config))
    compression = Compression.of(config, len(spec.layers))
    if compression is not None:
        return CompressingModel.of(stack, head, executor, compression)
    return TextModel(spec, executor.transformer(spec, stack), head)


LIGHTWEIGHT = Architecture(
    ("cost_wise_gemma", "gemma2"), (BGE_RERANKER_LIGHTWEIGHT,), gemma2_lightweight, plain_positions, spec_of
)
