"""The layers of T5 and mT5, their names, and the sizes that a configuration must have.

Behaviour reference: `modeling_t5.py` and `modeling_mt5.py` in transformers.
"""

from __future__ import annotations

from rerankd.layers.relative import Buckets
from rerankd.layers.spec import Activation, LayerSpec, Norm, TransformerSpec
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.stack import LayerNames

LEARNT = 512
"""Tokens of a text where the configuration sets no limit; T5 was trained on no longer texts."""
ATTENTION, MLP = "layer.0", "layer.1"
FORMS: dict[str, tuple[Activation, bool]] = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True)}
"""By `feed_forward_proj`: the activation of the MLP, and whether the MLP is gated."""


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes. The decoder's layers are of the same kind."""
    layer = _layer(config)
    return TransformerSpec((layer,) * config.layers("num_layers"), final_norm=layer.norm)


def is_mt5(config: Config) -> bool:
    """Whether the configuration is of mT5 (Xue et al., 2021): a gated MLP by default, and a head that is not scaled."""
    return config.entries.get("model_type") == "mt5"


def _layer(config: Config) -> LayerSpec:
    form = config.get("feed_forward_proj", str, "gated-gelu" if is_mt5(config) else "relu")
    if form not in FORMS:
        raise config.wrong("feed_forward_proj", f"must be {' or '.join(FORMS)}")
    activation, gated = FORMS[form]
    return LayerSpec(
        hidden=config.size("d_model"),
        heads=config.size("num_heads"),
        head_dim=config.size("d_kv"),
        mlp=config.size("d_ff"),
        norm=Norm("rms", config.epsilon("layer_norm_epsilon", 1e-6)),
        placement="pre",
        activation=activation,
        causal=False,
        gated=gated,
        attention_bias=Buckets(
            config.size("relative_attention_num_buckets", 32, least=4),
            config.size("relative_attention_max_distance", 128),
        ),
        scale=1.0,
    )


def up_names(gated: bool) -> tuple[str, ...]:
    """The names of the MLP's first linear layers."""
    return ("wi_0", "wi_1") if gated else ("wi",)


def names_of(layer: LayerSpec) -> LayerNames:
    """The names of the encoder's tensors."""
    return LayerNames(
        layer="block.{}",
        qkv=tuple(f"{ATTENTION}.SelfAttention.{part}" for part in "qkv"),
        out=f"{ATTENTION}.SelfAttention.o",
        up=tuple(f"{MLP}.DenseReluDense.{name}" for name in up_names(layer.gated)),
        down=f"{MLP}.DenseReluDense.wo",
        attention_norm=f"{ATTENTION}.layer_norm",
        mlp_norm=f"{MLP}.layer_norm",
    )


def expect_in(config: Config, weights: Weights) -> None:
    """Refuse weights of other sizes than the configuration's, before anything is allocated by these sizes."""
    weights.expect_size(config, "vocab_size", config.size("vocab_size"), "shared.weight")
    weights.expect_size(config, "d_model", config.size("d_model"), "shared.weight", axis=1)
    weights.expect_count(config, "num_layers", config.layers("num_layers"), "encoder.block")
    weights.expect_count(config, "num_decoder_layers", decoder_layers(config), "decoder.block")
    first = weights.scope(f"encoder.block.0.{ATTENTION}.SelfAttention")
    first.expect_size(config, "num_heads", config.size("num_heads"), "q.weight", each=config.size("d_kv"))
    for name in ("wi", "wi_0"):
        weights.expect_size(config, "d_ff", config.size("d_ff"), f"encoder.block.0.{MLP}.DenseReluDense.{name}.weight")


def decoder_layers(config: Config) -> int:
    """The number of the decoder's layers; by default that of the encoder's."""
    return config.layers("num_decoder_layers" if config.entries.get("num_decoder_layers") is not None else "num_layers")


def positions(config: Config) -> int:
    """`n_positions`. The biases of distance set no limit of their own."""
    return config.size("n_positions", LEARNT)
