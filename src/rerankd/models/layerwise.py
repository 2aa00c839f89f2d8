"""Rerankers that can be scored after fewer than all layers: they have a row of scores after each of the later layers.

Reference: `inference/reranker/decoder_only/layerwise.py` and `lightweight.py` of the package FlagEmbedding.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rerankd.layers.spec import TransformerSpec
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.heads import TokenHead
from rerankd.models.labels import declared_activation
from rerankd.models.recipes.recipe import Recipe

CUTOFF = "cutoff_layers"
"""The entry for the number of layers before the score is read: a number, or FlagEmbedding's list of one number."""


def cutoff_of(config: Config, step: int = 1) -> int:
    """The number of layers before the score is read: all, unless `cutoff_layers` says otherwise.

    step: layers from one row of scores to the next
    """
    layers, first = config.layers(), config.size("start_layer")
    cutoff = config.entries.get(CUTOFF)
    cutoff = (
        layers if cutoff is None else cutoff[0] if isinstance(cutoff, (list, tuple)) and len(cutoff) == 1 else cutoff
    )
    if type(cutoff) is not int or cutoff not in range(first, layers + 1, step):
        known = f"one layer from {first} to {layers}" + (f" in steps of {step}" if step > 1 else "")
        raise Config({CUTOFF: cutoff}, config.source).wrong(CUTOFF, f"must be {known}")
    return cutoff


def cut(spec: TransformerSpec, layers: int) -> TransformerSpec:
    """The first layers of a stack, and the norm behind the last."""
    return replace(spec, layers=spec.layers[:layers])


def score_row(
    config: Config, weights: Weights, base: Weights, cutoff: int, place: int, recipe: Recipe, cap: float | None = None
) -> TokenHead:
    """The head of a model that is scored after `cutoff` layers, by the row of scores at `place`.

    base: the view that holds the layers, of which those behind are left unread
    cap: see `TokenHead`
    """
    for layer in range(cutoff, config.layers()):
        base.leave(f"layers.{layer}")
    row = weights.tensor(f"lm_head.{place}.linear_head.weight", 1, config.size("hidden_size"), dtype=torch.float32)
    return TokenHead(row, None, declared_activation(config, 1, recipe.activation), cap=cap)
