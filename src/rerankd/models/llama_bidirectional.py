"""llama-nemotron-rerank: a Llama decoder (Touvron et al., 2023) whose attention looks both ways, pooled and classified.

Behaviour reference: `llama_bidirectional_model.py` of nvidia's models, which is not run, over `modeling_llama.py` in
transformers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from rerankd.layers.spec import Affine, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TextModel, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import decoder, expect_in, layer_of, rotary_of, stacked
from rerankd.models.labels import declared_activation, read_labels
from rerankd.models.pooling import Pooling
from rerankd.models.recipes.nemotron import BEGIN, NEMOTRON_RERANK
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.sequential import SequentialHead
from rerankd.models.steps import SCORES, Linear, Steps

POOLINGS: dict[Any, Pooling] = {"avg": Pooling(("mean",)), "cls": Pooling(("cls",))}
"""Ways to pool, by their names in config.json."""


def spec_of(config: Config) -> TransformerSpec:
    """The stack that a configuration describes: Llama's layers, in which a token sees all others."""
    config.require("hidden_act", "silu")
    config.require("attention_bias", False, None)
    config.require("mlp_bias", False, None)
    return stacked(config, replace(layer_of(config, rotary_of(config)), causal=False))


def nemotron_reranker(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> TextModel:
    """`LlamaBidirectionalForSequenceClassification`."""
    token_id(BEGIN)  # without which it would be read as text
    config.require("pooling", "avg", "cls")
    base = weights.scope_holding("embed_tokens.weight", "model", "")
    expect_in(config, base)
    stack = decoder(config, base, spec_of(config))
    head = pooled_score(config, weights, stack.spec.hidden, recipe, POOLINGS[config.entries.get("pooling", "avg")])
    return TextModel(stack.spec, executor.transformer(stack.spec, stack), head)


def pooled_score(config: Config, weights: Weights, hidden: int, recipe: Recipe, pooling: Pooling) -> SequentialHead:
    """The logits of pooled states, divided by `temperature`."""
    labels, temperature = read_labels(config, recipe.label), config.get("temperature", float, 1.0)
    if temperature <= 0:
        raise config.wrong("temperature", "must be more than 0")
    weights.expect_size(config, "num_labels", labels.count, "score.weight")
    rows = weights.tensor("score.weight", labels.count, hidden, dtype=torch.float32)
    return SequentialHead(
        pooling,
        Steps((Linear(Affine(rows / temperature)),), labels.count, SCORES),
        declared_activation(config, labels.count),
        labels.chosen,
    )


NEMOTRON = Architecture(("llama_bidirec",), (NEMOTRON_RERANK,), nemotron_reranker, plain_positions, spec_of)
