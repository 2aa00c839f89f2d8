"""monoT5: T5 (Raffel et al., 2020), whose encoder reads a pair and whose decoder's first token scores it.

Behaviour reference: `modeling_t5.py` in transformers.
"""

from __future__ import annotations

from functools import partial

import torch

from rerankd.layers.relative import Buckets
from rerankd.layers.spec import Activation, EmbeddingWeights, LayerSpec, Norm, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.answers import read_answers
from rerankd.models.architecture import Architecture
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.first_step import FirstStepHead, StepLayer
from rerankd.models.mpnet import Biases
from rerankd.models.recipes.monot5 import MONOT5
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import LayerNames, Stack

LEARNT = 512
"""Tokens of a text where the configuration says nothing; T5 was trained on no more."""
ATTENTION, MLP, HEAD = "layer.0", "layer.1", "lm_head.weight"
FORMS: dict[str, tuple[Activation, bool]] = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True)}
"""What `feed_forward_proj` says of the MLP: its activation, and whether it is gated."""


def spec_of(config: Config) -> TransformerSpec:
    """The encoder that a configuration describes. The decoder's layers are of the same kind."""
    layer = _layer(config)
    return TransformerSpec((layer,) * config.layers("num_layers"), final_norm=layer.norm)


def _layer(config: Config) -> LayerSpec:
    form = config.get("feed_forward_proj", str, "relu")
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


def _up(gated: bool) -> tuple[str, ...]:
    return ("wi_0", "wi_1") if gated else ("wi",)


def names_of(layer: LayerSpec) -> LayerNames:
    """The names of the encoder's tensors."""
    return LayerNames(
        layer="block.{}",
        qkv=tuple(f"{ATTENTION}.SelfAttention.{part}" for part in "qkv"),
        out=f"{ATTENTION}.SelfAttention.o",
        up=tuple(f"{MLP}.DenseReluDense.{name}" for name in _up(layer.gated)),
        down=f"{MLP}.DenseReluDense.wo",
        attention_norm=f"{ATTENTION}.layer_norm",
        mlp_norm=f"{MLP}.layer_norm",
    )


def expect_in(config: Config, weights: Weights) -> None:
    """Refuse weights of other sizes than the configuration's, before anything is made by these."""
    weights.expect_size(config, "vocab_size", config.size("vocab_size"), "shared.weight")
    weights.expect_size(config, "d_model", config.size("d_model"), "shared.weight", axis=1)
    weights.expect_count(config, "num_layers", config.layers("num_layers"), "encoder.block")
    weights.expect_count(config, "num_decoder_layers", decoder_layers(config), "decoder.block")
    first = weights.scope(f"encoder.block.0.{ATTENTION}.SelfAttention")
    first.expect_size(config, "num_heads", config.size("num_heads"), "q.weight", each=config.size("d_kv"))
    for name in ("wi", "wi_0"):
        weights.expect_size(config, "d_ff", config.size("d_ff"), f"encoder.block.0.{MLP}.DenseReluDense.{name}.weight")


def decoder_layers(config: Config) -> int:
    """How many layers the decoder has: as many as the encoder where nothing is said of them."""
    return config.layers("num_decoder_layers" if config.entries.get("num_decoder_layers") is not None else "num_layers")


def encoder(config: Config, weights: Weights, spec: TransformerSpec) -> Stack:
    """The weights of the encoder, which must have passed `expect_in`."""
    layer, own = spec.layers[0], weights.scope("encoder")
    assert isinstance(layer.attention_bias, Buckets)
    table = own.tensor(
        f"block.0.{ATTENTION}.SelfAttention.relative_attention_bias.weight", layer.attention_bias.count, layer.heads
    )
    words = weights.tensor("shared.weight", config.size("vocab_size"), spec.hidden)
    norm = own.norm("final_layer_norm", spec.hidden, layer.norm)
    relative = Biases(table, layer.head_dim)
    return Stack(spec, own, names_of(layer), EmbeddingWeights(words), norm, relative=relative)


def first_step(config: Config, weights: Weights, spec: LayerSpec, token_id: TokenIds, recipe: Recipe) -> FirstStepHead:
    """The decoder's weights as far as its first step reads them, and the rows of the answers."""
    own = weights.scope("decoder")
    answers = read_answers(config, token_id, recipe)
    tied = config.flag("tie_word_embeddings") is not False
    # Some folders say that the head is the embedding, and have another one: transformers reads what is there.
    rows = weights.rows("shared.weight" if tied and HEAD not in weights else HEAD, answers.ids, spec.hidden)
    scaled = config.flag("scale_decoder_outputs")
    if tied if scaled is None else scaled:
        rows = rows * spec.hidden**-0.5
    start = weights.rows("shared.weight", [config.size("decoder_start_token_id", 0, least=0)], spec.hidden)[0]
    return FirstStepHead(
        spec=spec,
        layers=tuple(_step(own.scope(f"block.{i}"), spec) for i in range(decoder_layers(config))),
        start=start,
        norm=own.tensor("final_layer_norm.weight", spec.hidden, dtype=torch.float32),
        relevance=rows,
        activation=answers.activation,
        logarithm=answers.activation == "identity",
    )


def _step(weights: Weights, spec: LayerSpec) -> StepLayer:
    for name in ("SelfAttention.q", "SelfAttention.k", "SelfAttention.relative_attention_bias"):
        weights.leave(f"{ATTENTION}.{name}")
    weights.leave("layer.1.EncDecAttention.relative_attention_bias")
    width, hidden, mlp = spec.query_width, spec.hidden, spec.mlp
    norm = partial(weights.tensor, dtype=torch.float32)
    up = [weights.tensor(f"layer.2.DenseReluDense.{name}.weight", mlp, hidden) for name in _up(spec.gated)]
    return StepLayer(
        norms=torch.stack([norm(f"layer.{i}.layer_norm.weight", hidden) for i in range(3)]),
        own_value=weights.tensor("layer.0.SelfAttention.v.weight", width, hidden),
        own_out=weights.tensor("layer.0.SelfAttention.o.weight", hidden, width),
        query=weights.tensor("layer.1.EncDecAttention.q.weight", width, hidden),
        key=weights.tensor("layer.1.EncDecAttention.k.weight", width, hidden),
        value=weights.tensor("layer.1.EncDecAttention.v.weight", width, hidden),
        out=weights.tensor("layer.1.EncDecAttention.o.weight", hidden, width),
        up=torch.cat(up),
        down=weights.tensor("layer.2.DenseReluDense.wo.weight", hidden, mlp),
    )


def monot5(config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe) -> TextModel:
    """`T5ForConditionalGeneration`."""
    expect_in(config, weights)
    spec = spec_of(config)
    head = first_step(config, weights, spec.layers[0], token_id, recipe)
    return TextModel(spec, executor.transformer(spec, encoder(config, weights, spec)), head)


def positions(config: Config) -> int:
    """`n_positions`: places are read as distances, of which there are any."""
    return config.size("n_positions", LEARNT)


T5 = Architecture(("t5",), (MONOT5,), monot5, positions, spec_of)
