"""Which recipe a checkpoint is scored by."""

from __future__ import annotations

from pathlib import Path

from rerankd.models.architecture import Architecture
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.modules import expect_modules
from rerankd.models.recipes.recipe import Recipe


def choose_recipe(config: Config, name: str, architecture: Architecture) -> Recipe:
    """The recipe of a checkpoint of the architecture `name`; ModelError where its folder is for something else."""
    recipe = architecture.recipes[0]
    expect_modules(name, recipe, Path(config.source).parent)
    return recipe
