"""Takes texts out of the model's template, where a client has put them into it already.

vLLM long served these models without a template of their own, so its documented clients write it themselves: the
query from the system turn on, each document up to the assistant turn. Rendered once more, such texts score wrong.
"""

from __future__ import annotations

import re

from rerankd.models.recipes.qwen3 import ASSISTANT_TURN, SYSTEM_TURN

# vLLM's examples write one space behind each colon and a newline before each tag, Qwen3-VL's own code neither.
_QUERY = re.compile(
    re.escape(SYSTEM_TURN + "<|im_start|>user\n")
    + r"<Instruct>: ?(?P<instruction>.*?)\n?<Query>: ?(?P<query>.*?)\n?(?:<Document>: ?)?",
    re.DOTALL,
)
_BEFORE_DOCUMENT = re.compile(r"\n?<Document>: ?")
_AFTER_DOCUMENT = re.compile(r"\s*(?:<think>\s*</think>\s*)?")
_END = ASSISTANT_TURN.rstrip("\n")


def untemplate_query(text: str) -> tuple[str, str] | None:
    """The (instruction, query) of a query that begins with the rerankers' system turn; None for any other text."""
    match = _QUERY.fullmatch(text)
    return (match["instruction"], match["query"]) if match else None


def untemplate_document(text: str) -> str | None:
    """The document of a text that ends with the assistant turn; None for any other text."""
    end = text.rfind(_END)
    if end < 0 or not _AFTER_DOCUMENT.fullmatch(text, end + len(_END)):
        return None
    tag = _BEFORE_DOCUMENT.match(text)
    return text[tag.end() if tag else 0 : end]
