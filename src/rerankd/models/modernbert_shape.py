"""The layers of ModernBERT, from config.json of older and newer releases of transformers."""

from __future__ import annotations

from dataclasses import replace

from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import LayerSpec, Norm, TransformerSpec
from rerankd.models.bert import GELU
from rerankd.models.checkpoint.config import Config

FULL, LOCAL = "full_attention", "sliding_attention"
THETAS = {FULL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
"""Older names of the rotary thetas, and their defaults."""


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes."""
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    if hidden % (2 * heads):
        raise config.wrong("num_attention_heads", f"must divide `hidden_size` ({hidden}) into even parts")
    function = config.get("hidden_activation", str, "gelu")
    if function not in GELU:
        raise config.wrong("hidden_activation", f"must be one of {', '.join(GELU)}")
    norm, biased = Norm("layer", config.epsilon("norm_eps", 1e-5)), config.flag("attention_bias") is True
    plain = LayerSpec(
        hidden=hidden, heads=heads, head_dim=hidden // heads, mlp=config.size("intermediate_size"), norm=norm,
        placement="pre", activation=GELU[function], causal=False, gated=True, qkv_bias=biased, out_bias=biased,
        mlp_bias=config.flag("mlp_bias") is True,
    )  # fmt: skip
    window = config.size("local_attention", 128) // 2
    kinds = {
        FULL: replace(plain, rotary=_rotary(config, FULL, hidden // heads)),
        LOCAL: replace(plain, rotary=_rotary(config, LOCAL, hidden // heads), window=window),
    }
    first, *rest = (kinds[kind] for kind in _kinds(config, config.layers()))
    return TransformerSpec((replace(first, attention_norm=False), *rest), final_norm=norm, embedding_norm=norm)


def _kinds(config: Config, layers: int) -> list[str]:
    """The layers that attend to all tokens: as `layer_types` says, else every third."""
    kinds = config.entries.get("layer_types")
    if kinds is None:
        every = config.size("global_attn_every_n_layers", 3)
        return [LOCAL if i % every else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (FULL, LOCAL) for kind in kinds):
        raise config.wrong("layer_types", f"must name {FULL} or {LOCAL} for each of the {layers} layers")
    return kinds


def _rotary(config: Config, kind: str, width: int) -> Rotary:
    config.require("rope_scaling", None)
    older, default = THETAS[kind]
    parameters = config.section("rope_parameters") if config.entries.get("rope_parameters") is not None else None
    kind_parameters = (
        parameters.section(kind) if parameters is not None and parameters.entries.get(kind) is not None else None
    )
    theta = (
        config.get(older, float, default)
        if kind_parameters is None
        else kind_parameters.get("rope_theta", float, default)
    )
    return (
        Config(
            {"rope_theta": theta} | ({} if kind_parameters is None else dict(kind_parameters.entries)), config.source
        )
        .rope()
        .rotary(width)
    )
