"""bge-reranker-v2-gemma: a question about A and B in pieces, scored by the logit of "Yes".

Source: `inference/reranker/decoder_only/base.py` of the package FlagEmbedding, whose score is that logit unless it is
told to normalise. An instruction stands in place of the question, as its `prompt` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import PieceTemplate

if TYPE_CHECKING:
    from rerankd.models.recipes.evidence import Evidence

QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)

PIECES = PieceTemplate(
    head=("<bos>",),
    before_query="A: ",
    between="\n",
    before_document="B: ",
    tail=("\n",),
    most=512,
    extends=True,
    default_instruction=QUESTION,
)
"""The pieces of FlagEmbedding's decoders."""


def _is_bge(evidence: Evidence) -> str | None:
    return "its chat template asks the authors' question" if QUESTION in (evidence.chat_template or "") else None


BGE_RERANKER_GEMMA = Recipe(
    "bge-reranker-gemma",
    family="decoder",
    answers=("Yes",),
    activation="identity",
    template=PIECES,
    models="bge[-_]reranker[-_]v2[-_]gemma",
    recognised=_is_bge,
)
