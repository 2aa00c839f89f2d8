"""The recipes by name."""

from __future__ import annotations

from rerankd.models.recipes.ctxl import CTXL_RERANK
from rerankd.models.recipes.encoders import BI_ENCODERS, CROSS_ENCODER, LATE_INTERACTION
from rerankd.models.recipes.gemma import BGE_RERANKER_GEMMA
from rerankd.models.recipes.jina import JINA_RERANKER_M0, JINA_RERANKER_V3
from rerankd.models.recipes.layerwise import BGE_RERANKER_LAYERWISE, BGE_RERANKER_LIGHTWEIGHT
from rerankd.models.recipes.monot5 import MONOT5, MT5_MMARCO, MT5_MMARCO_LARGE
from rerankd.models.recipes.mxbai import MXBAI_RERANK
from rerankd.models.recipes.nemotron import NEMOTRON_RERANK, NEMOTRON_RERANK_VL
from rerankd.models.recipes.qwen3 import QWEN3_RERANKER, QWEN3_VL_RERANKER
from rerankd.models.recipes.zerank import ZERANK

ALL = (
    CROSS_ENCODER,
    *BI_ENCODERS,
    LATE_INTERACTION,
    QWEN3_RERANKER,
    QWEN3_VL_RERANKER,
    ZERANK,
    CTXL_RERANK,
    MXBAI_RERANK,
    BGE_RERANKER_GEMMA,
    BGE_RERANKER_LAYERWISE,
    BGE_RERANKER_LIGHTWEIGHT,
    NEMOTRON_RERANK,
    NEMOTRON_RERANK_VL,
    JINA_RERANKER_V3,
    JINA_RERANKER_M0,
    MONOT5,
    MT5_MMARCO,
    MT5_MMARCO_LARGE,
)
RECIPES = {recipe.name: recipe for recipe in ALL}
