"""The facts of an architecture that loading needs before it reads weights; each family's file has its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.media.visual import VisionFormat
from rerankd.models.base import Model, TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to load a model of an architecture, and how it may be scored.

    model_types: the values of `model_type` in config.json
    recipes: the recipes that are known for the architecture
    positions: the most tokens of a prompt by the model's positions
    spec: the specification of its layers
    pictures: the pixels that its vision tower takes; None for a model that reads text only
    processed: a recipe with the settings of the processor in the folder; None where no processor has any
    """

    model_types: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    load: Callable[[Config, Weights, TokenIds, Executor, Recipe], Model]
    positions: Callable[[Config], int]
    spec: Callable[[Config], TransformerSpec]
    pictures: Callable[[Config], VisionFormat] | None = None
    processed: Callable[[Config, Recipe], Recipe] | None = None


def plain_positions(config: Config) -> int:
    """`max_position_embeddings`."""
    return config.size("max_position_embeddings")
