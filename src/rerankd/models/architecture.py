"""The facts of an architecture that loading needs before it reads weights. Each family's file has its own."""

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
    """How to load a model of an architecture, and the recipes that may score it.

    model_types: the supported values of `model_type` in config.json
    recipes: the recipes of the architecture's models
    load: makes the model from its configuration, weights and recipe
    positions: the number of positions of the model, which is the most tokens of a prompt
    spec: the specification of its layers
    images: the form of pixels for its vision tower; None for a model that reads only text
    processed: a recipe with the settings of the processor in the folder; None if no processor has any
    """

    model_types: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    load: Callable[[Config, Weights, TokenIds, Executor, Recipe], Model]
    positions: Callable[[Config], int]
    spec: Callable[[Config], TransformerSpec]
    images: Callable[[Config], VisionFormat] | None = None
    processed: Callable[[Config, Recipe], Recipe] | None = None


def plain_positions(config: Config) -> int:
    """`max_position_embeddings`."""
    return config.size("max_position_embeddings")
