"""bge-reranker-v2-minicpm-layerwise and bge-reranker-v2.5-gemma2-lightweight: questions in pieces, and rows of scores.

Source: `inference/reranker/decoder_only/layerwise.py` and `lightweight.py` of the package FlagEmbedding, whose score is
the row's product unless it is told to normalise.
"""

from __future__ import annotations

from dataclasses import replace

from rerankd.models.recipes.gemma import PIECES
from rerankd.models.recipes.recipe import Recipe

BGE_RERANKER_LAYERWISE = Recipe(
    "bge-reranker-layerwise",
    family="decoder",
    activation="identity",
    template=replace(PIECES, head=("<s>",)),
    layerwise=True,
)
"""Its question is that of bge-reranker-v2-gemma."""
BGE_RERANKER_LIGHTWEIGHT = Recipe(
    "bge-reranker-lightweight",
    family="decoder",
    activation="identity",
    template=replace(PIECES, default_instruction="Predict whether passage B contains an answer to query A."),
    layerwise=True,
    compresses=True,
)
"""The classes in config.json belong to these models alone, so the folders need no other evidence."""
