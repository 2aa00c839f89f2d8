"""jina-reranker-v3: one prompt of many passages, whose vectors are compared with the query's.

Source: `modeling.py` in jinaai/jina-reranker-v3 (`format_docs_prompts_func` and `rerank`).
"""

from __future__ import annotations

from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import ListTemplate

JINA_RERANKER_V3 = Recipe(
    "jina-reranker-v3",
    family="listwise",
    activation="identity",
    listwise=ListTemplate(
        system=(
            "You are a search relevance expert who can determine a ranking of the passages based on how relevant they "
            "are to the query. If the query is a question, how relevant a passage is depends on how well it answers "
            "the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
            "the intent. If an instruction is provided, you should follow the instruction when determining the ranking."
        ),
        document_mark="<|embed_token|>",
        query_mark="<|rerank_token|>",
        vector=512,
        documents=125,
        document_tokens=2048,
        query_tokens=512,
    ),
    refused=(
        (
            r"jina[-_]reranker[-_]v3\.5",
            "jina-reranker-v3.5 has layers of sliding attention, which no recipe is known for; serve jina-reranker-v3",
        ),
    ),
)
