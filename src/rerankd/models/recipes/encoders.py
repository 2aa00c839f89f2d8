"""Recipes of encoders: the tokenizer makes the prompts, and the folder says the rest."""

from __future__ import annotations

from functools import partial

from rerankd.models.recipes.recipe import Recipe

INSTRUCTED = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
"""The query prompt of models whose queries begin with a task."""

CROSS_ENCODER = Recipe("cross-encoder", family="cross-encoder")
"""A classifier over a pair."""

_bi_encoder = partial(Recipe, family="bi-encoder", pairs=False)
BI_ENCODER = _bi_encoder("bi-encoder")
"""The similarity of two embeddings, of texts with the folder's prompts."""
E5 = _bi_encoder(
    "e5", query_prompt="query: ", document_prompt="passage: ", models=r"e5[-_](small|base|large)(?!.*instruct)"
)
"""E5 and multilingual E5. Source: the cards of intfloat's models."""
E5_INSTRUCT = _bi_encoder("e5-instruct", query_prompt=INSTRUCTED, models=r"e5[-_](small|base|large)[-_]instruct")
"""multilingual-e5-large-instruct. Source: its card."""
BGE_EN = _bi_encoder(
    "bge-en",
    query_prompt="Represent this sentence for searching relevant passages: ",
    models=r"bge[-_](small|base|large)[-_]en",
)
"""bge-small, -base and -large for English, 1.5 too. Source: the list of models on BAAI's cards."""
BGE_ZH = _bi_encoder(
    "bge-zh", query_prompt="为这个句子生成表示以用于检索相关文章：", models=r"bge[-_](small|base|large)[-_]zh"
)
"""bge-small, -base and -large for Chinese."""

LATE_INTERACTION = Recipe("late-interaction", family="late-interaction", pairs=False)
"""MaxSim over the vectors of tokens."""

BI_ENCODERS = (BI_ENCODER, E5, E5_INSTRUCT, BGE_EN, BGE_ZH)
POOLED = (*BI_ENCODERS, CROSS_ENCODER, LATE_INTERACTION)
"""The recipes of a bare encoder; the modules of its folder decide."""
