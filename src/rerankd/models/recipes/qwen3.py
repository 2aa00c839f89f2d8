"""Qwen3-Reranker and Qwen3-VL-Reranker: their prompts, to the character, and how their folders are recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import InstructedTemplate

if TYPE_CHECKING:
    from rerankd.models.recipes.evidence import Evidence

JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
SYSTEM_TURN = f"<|im_start|>system\n{JUDGE}<|im_end|>\n"
ASSISTANT_TURN = "<|im_end|>\n<|im_start|>assistant\n"
TAIL_TOKENS = 5
"""Tokens of ASSISTANT_TURN, which the authors of Qwen3-VL-Reranker do not count."""
THINK_BLOCK = "<think>\n\n</think>\n\n"
ANSWERS, ANSWER_IDS = ("no", "yes"), (2152, 9693)
VOCABULARY = 151_669
"""Rows of Qwen3-Reranker's embedding, one for each token. Qwen's chat models have 151,936."""
SIZES = ((1024, 28), (2560, 36), (4096, 36))
"""`hidden_size` and `num_hidden_layers` of the published Qwen3-Rerankers."""


def _is_qwen3(evidence: Evidence) -> str | None:
    entries = evidence.config.entries
    if evidence.logit_score == ANSWER_IDS:
        return 'its LogitScore reads "yes" and "no"'
    if entries.get("vocab_size") != VOCABULARY or evidence.appends():
        return None
    reason = f"its vocabulary has {VOCABULARY:,} tokens, like Qwen3-Reranker's and unlike chat models'"
    if (entries.get("hidden_size"), entries.get("num_hidden_layers")) in SIZES:
        return f"{reason}, and its sizes are those of a Qwen3-Reranker"
    return None if evidence.chat_template else f"{reason}, and it has no chat template"


def _is_qwen3_vl(evidence: Evidence) -> str | None:
    if evidence.logit_score == ANSWER_IDS:
        return 'its LogitScore reads "yes" and "no"'
    if (evidence.folder / "scripts" / "qwen3_vl_reranker.py").is_file():
        return "it holds the authors' scripts/qwen3_vl_reranker.py"
    if (evidence.folder / "scripts" / "qwen3_vl_embedding.py").is_file():
        return None
    if evidence.samples or evidence.appends() or "tool" in (evidence.chat_template or ""):
        return None
    return "its chat template has no tools, and generation_config.json no sampling, which chat models have"


QWEN3_RERANKER = Recipe(
    "qwen3-reranker",
    family="decoder",
    answers=ANSWERS,
    template=InstructedTemplate(
        before_instruction=f"{SYSTEM_TURN}<|im_start|>user\n<Instruct>: ",
        before_query="\n<Query>: ",
        before_document="\n<Document>: ",
        tail=ASSISTANT_TURN + THINK_BLOCK,
        empty="",
        default_instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
    models="qwen3[-_]reranker",
    recognised=_is_qwen3,
    max_tokens=8192,
)
"""`format_instruction` and `process_inputs` of the README of QwenLM/Qwen3-Embedding."""

QWEN3_VL_RERANKER = Recipe(
    "qwen3-vl-reranker",
    family="decoder",
    answers=ANSWERS,
    template=InstructedTemplate(
        before_instruction=f"{SYSTEM_TURN}<|im_start|>user\n<Instruct>: ",
        before_query="<Query>:",
        before_document="\n<Document>:",
        tail=ASSISTANT_TURN,
        empty="NULL",
        default_instruction="Given a search query, retrieve relevant candidates that answer the query.",
    ),
    supports_vision=True,
    models="qwen3[-_]vl[-_]reranker",
    recognised=_is_qwen3_vl,
    max_tokens=10_240 + TAIL_TOKENS,
)
"""`format_mm_instruction` of `src/models/qwen3_vl_reranker.py` in QwenLM/Qwen3-VL-Embedding."""
