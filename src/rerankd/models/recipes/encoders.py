"""Encoders: the tokenizer makes their prompts, and their folders say the rest."""

from __future__ import annotations

from rerankd.models.recipes.recipe import Recipe

CROSS_ENCODER = Recipe("cross-encoder", family="cross-encoder")
"""A classifier over a pair."""
BI_ENCODER = Recipe("bi-encoder", family="bi-encoder", pairs=False)
"""The cosine of two embeddings."""
POOLED = (BI_ENCODER, CROSS_ENCODER)
"""What a bare encoder may be: a cross-encoder where the modules of its folder make scores of pooled pairs."""
