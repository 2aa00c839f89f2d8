"""monoT5: T5 (Raffel et al., 2020), whose encoder reads a pair and whose decoder's first token scores it.

mT5 (Xue et al., 2021) is T5 with a gated MLP and another vocabulary. Behaviour reference: `modeling_t5.py` and
`modeling_mt5.py` in transformers.
"""

from __future__ import annotations

from functools import partial

import torch

from rerankd.layers.relative import Buckets
from rerankd.layers.spec import EmbeddingWeights, LayerSpec, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.answers import read_answers
from rerankd.models.architecture import Architecture
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.first_step import FirstStepHead, StepLayer
from rerankd.models.mpnet import Biases
from rerankd.models.recipes.monot5 import MONOT5, MT5_MMARCO, MT5_MMARCO_LARGE
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.stack import Stack
from rerankd.models.t5_shape import ATTENTION, decoder_layers, expect_in, is_mt5, names_of, positions, spec_of, up_names

HEAD = "lm_head.weight"


def encoder(config: Config, weights: Weights, spec: TransformerSpec) -> Stack:
    """The weights of the encoder, which must have passed `expect_in`."""
    layer, encoder_weights = spec.layers[0], weights.scope("encoder")
    assert isinstance(layer.attention_bias, Buckets)
    table = encoder_weights.tensor(
        f"block.0.{ATTENTION}.SelfAttention.relative_attention_bias.weight", layer.attention_bias.count, layer.heads
    )
    words = weights.tensor("shared.weight", config.size("vocab_size"), spec.hidden)
    norm = encoder_weights.norm("final_layer_norm", spec.hidden, layer.norm)
    relative = Biases(table, layer.head_dim)
    return Stack(spec, encoder_weights, names_of(layer), EmbeddingWeights(words), norm, relative=relative)


def first_step(config: Config, weights: Weights, spec: LayerSpec, token_id: TokenIds, recipe: Recipe) -> FirstStepHead:
    """The weights that the decoder's first step reads, and the rows of the answers."""
    decoder_weights = weights.scope("decoder")
    answers = read_answers(config, token_id, recipe)
    tied = config.flag("tie_word_embeddings") is not False
    # Some folders say that the head is the embedding, and have another head: transformers reads the head that is there.
    rows = weights.rows("shared.weight" if tied and HEAD not in weights else HEAD, answers.ids, spec.hidden)
    scaled = config.flag("scale_decoder_outputs")
    # All published mT5 have a head of their own; transformers 5 saves them as tied all the same.
    if not is_mt5(config) and (tied if scaled is None else scaled):
        rows = rows * spec.hidden**-0.5
    start = weights.rows("shared.weight", [config.size("decoder_start_token_id", 0, least=0)], spec.hidden)[0]
    return FirstStepHead(
        spec=spec,
        layers=tuple(_step(decoder_weights.scope(f"block.{i}"), spec) for i in range(decoder_layers(config))),
        start=start,
        norm=decoder_weights.tensor("final_layer_norm.weight", spec.hidden, dtype=torch.float32),
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
    up = [weights.tensor(f"layer.2.DenseReluDense.{name}.weight", mlp, hidden) for name in up_names(spec.gated)]
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
    """`T5ForConditionalGeneration`, `MT5ForConditionalGeneration`."""
    expect_in(config, weights)
    spec = spec_of(config)
    head = first_step(config, weights, spec.layers[0], token_id, recipe)
    return TextModel(spec, executor.transformer(spec, encoder(config, weights, spec)), head)


T5 = Architecture(("t5", "mt5"), (MONOT5, MT5_MMARCO, MT5_MMARCO_LARGE), monot5, positions, spec_of)
