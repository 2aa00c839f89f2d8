"""Qwen3-Reranker and Qwen3-VL-Reranker: their prompts, to the character, and their answers."""

from __future__ import annotations

from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import InstructedTemplate

JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
SYSTEM_TURN = f"<|im_start|>system\n{JUDGE}<|im_end|>\n"
ASSISTANT_TURN = "<|im_end|>\n<|im_start|>assistant\n"
THINK_BLOCK = "<think>\n\n</think>\n\n"
ANSWERS = ("no", "yes")

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
    sees=True,
)
"""`format_mm_instruction` of `src/models/qwen3_vl_reranker.py` in QwenLM/Qwen3-VL-Embedding."""
