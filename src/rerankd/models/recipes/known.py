"""The recipes by name."""

from __future__ import annotations

from rerankd.models.recipes.encoders import BI_ENCODER, CROSS_ENCODER
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER, QWEN3_VL_RERANKER

RECIPES = {recipe.name: recipe for recipe in (CROSS_ENCODER, BI_ENCODER, QWEN3_RERANKER, QWEN3_VL_RERANKER)}
