"""mxbai-rerank-base-v2 and -large-v2: a chat's turn in pieces, scored by the logit of "1" minus that of "0".

Source: `mxbai_rerank_v2.py` of the package mxbai-rerank, whose `predict` gives that difference as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import PieceTemplate

if TYPE_CHECKING:
    from rerankd.models.recipes.evidence import Evidence

EXPERT = "You are a search relevance expert who evaluates how well documents match search queries."
TASK = (
    f"{EXPERT} For each query-document pair, carefully analyze the semantic relationship between them, then provide "
    "your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
)
ANSWERS, ANSWER_IDS = ("0", "1"), (15, 16)


def _is_mxbai(evidence: Evidence) -> str | None:
    if evidence.logit_score == ANSWER_IDS:
        return 'its LogitScore reads "0" and "1"'
    return "its chat template writes the authors' task" if EXPERT in (evidence.chat_template or "") else None


MXBAI_RERANK = Recipe(
    "mxbai-rerank",
    family="decoder",
    answers=ANSWERS,
    activation="identity",
    template=PieceTemplate(
        head=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n",
        ),
        before_instruction="instruction: ",
        before_query="query: ",
        between="\n",
        before_document="document: ",
        tail=("\n", TASK, "<|im_end|>\n<|im_start|>assistant\n"),
        most=8192,
    ),
    models="mxbai[-_]rerank",
    recognised=_is_mxbai,
)
