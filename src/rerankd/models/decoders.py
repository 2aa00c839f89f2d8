"""The parts that decoders of Llama's kind (Touvron et al., 2023) have in common."""

from __future__ import annotations

from collections.abc import Callable

from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import EmbeddingWeights, LayerSpec, Norm, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.answers import token_head
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import LayerNames, Stack

NAMES = LayerNames(
    layer="layers.{}",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
)


def head_dim_of(config: Config) -> int:
    """Values of one head."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    head_dim = config.size("head_dim", max(hidden // heads, 1))
    if head_dim % 2:
        raise config.wrong("head_dim", "must be even")
    return head_dim


def rotary_of(config: Config) -> Rotary:
    """The rotation of the heads."""
    return config.rope().rotary(head_dim_of(config))


def layer_of(config: Config, rotary: Rotary) -> LayerSpec:
    """The layer of Llama that a configuration describes, with heads rotated by `rotary`."""
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"must divide `num_attention_heads` ({heads})")
    return LayerSpec(
        hidden=config.size("hidden_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim_of(config),
        mlp=config.size("intermediate_size"),
        norm=Norm("rms", config.epsilon("rms_norm_eps", 1e-6)),
        placement="pre",
        activation="silu",
        gated=True,
        causal=True,
        rotary=rotary,
    )


def stacked(config: Config, layer: LayerSpec, embedding_scale: float = 1.0) -> TransformerSpec:
    """The configuration's number of such layers, and a norm behind them."""
    layers = (layer,) * config.layers()
    return TransformerSpec(layers, final_norm=layer.norm, embedding_scale=embedding_scale)


def expect_in(config: Config, weights: Weights) -> None:
    """Refuse weights of other sizes than the configuration's, before anything is allocated by these sizes."""
    weights.expect_size(config, "hidden_size", config.size("hidden_size"), "embed_tokens.weight", axis=1)
    weights.expect_size(config, "vocab_size", config.size("vocab_size"), "embed_tokens.weight")
    weights.expect_count(config, "num_hidden_layers", config.layers(), "layers")
    first, head_dim, heads = weights.scope("layers.0"), head_dim_of(config), config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    first.expect_size(config, "intermediate_size", config.size("intermediate_size"), "mlp.gate_proj.weight")
    first.expect_size(config, "head_dim", head_dim, "self_attn.q_norm.weight")
    first.expect_size(config, "num_attention_heads", heads, "self_attn.q_proj.weight", each=head_dim)
    first.expect_size(config, "num_key_value_heads", kv_heads, "self_attn.k_proj.weight", each=head_dim)


def decoder(
    config: Config, weights: Weights, spec: TransformerSpec, names: LayerNames = NAMES, output_scale: float = 1.0
) -> Stack:
    """The weights of a decoder, which must have passed `expect_in`. See `Stack`."""
    assert spec.final_norm is not None
    words = weights.tensor("embed_tokens.weight", config.size("vocab_size"), spec.hidden)
    norm = weights.norm("norm", spec.hidden, spec.final_norm)
    return Stack(spec, weights, names, EmbeddingWeights(words), norm, output_scale=output_scale)


def by_answers(
    config: Config,
    weights: Weights,
    token_id: TokenIds,
    executor: Executor,
    recipe: Recipe,
    spec_of: Callable[[Config], TransformerSpec],
) -> TextModel:
    """A decoder that its answers' logits score, or, if it was converted to a classifier, its score rows."""
    base = weights.scope_holding("embed_tokens.weight", "model", "")
    expect_in(config, base)
    # After `expect_in`: before it, the configuration's sizes may be any numbers.
    spec = spec_of(config)
    stack = decoder(config, base, spec)
    head = token_head(config, weights, base, stack, token_id, recipe)
    return TextModel(spec, executor.transformer(spec, stack), head)
