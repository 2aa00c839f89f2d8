"""What must be known of an architecture before its weights are read; each family's file has its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models.base import Model, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to load a model of an architecture, and how it may be scored.

    model_types: what config.json may call its `model_type`
    recipes: those that are known for it
    positions: how many tokens a prompt may have by the model's own positions
    spec: what its layers are
    """

    model_types: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    load: Callable[[Config, Weights, TokenIds, Executor, Recipe], Model]
    positions: Callable[[Config], int]
    spec: Callable[[Config], TransformerSpec]


def plain_positions(config: Config) -> int:
    """`max_position_embeddings`."""
    return config.size("max_position_embeddings")
