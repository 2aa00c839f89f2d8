"""jina-reranker-v3: one prompt of many passages, whose vectors are compared with the query's. jina-reranker-m0: a text
or an image under each of two headings.

Sources: `modeling.py` in jinaai/jina-reranker-v3 (`format_docs_prompts_func` and `rerank`), and in
jinaai/jina-reranker-m0 (`formatting_prompts_func` and `compute_score`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.media.sizing import Sizing
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


@dataclass(frozen=True, slots=True)
class JinaM0Template:
    """The document comes first, so that prompts of a request share its heading alone."""

    takes_instruction: bool = False
    verbatim: bool = True
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        return f"**Document**:\n{document}\n**Query**:\n{query}"


JINA_RERANKER_M0 = Recipe(
    "jina-reranker-m0",
    family="decoder",
    template=JinaM0Template(),
    score_token=100,
    logit_bias=2.65,
    max_tokens=10240,
    document_tokens=9728,
    supports_vision=True,
    images="alone",
    sizing=Sizing(min_pixels=4 * 28**2, max_pixels=768 * 28**2, max_frames=0, least_side=0),
)
"""The class in config.json belongs to this model alone, so the folder needs no other evidence."""
