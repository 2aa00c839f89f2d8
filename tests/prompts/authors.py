"""The rerankers' prompts as their authors publish them, over a transformers tokenizer."""

from __future__ import annotations

from typing import Any

from tests.checkpoints import VL_CHAT_TEMPLATE

JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
BEFORE = f"<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QWEN3_TASK = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3_VL_TASK = "Given a search query, retrieve relevant candidates that answer the query."


def qwen3_ids(
    tokenizer: Any, query: str, document: str, instruction: str = QWEN3_TASK, max_length: int = 8192
) -> list[int]:
    """Qwen3-Reranker's: what the model judges is cut to fit between two ends that are tokenised by themselves."""
    before = tokenizer.encode(BEFORE, add_special_tokens=False)
    after = tokenizer.encode(AFTER, add_special_tokens=False)
    judged = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    budget = max_length - len(before) - len(after)
    return list(before + tokenizer(judged, truncation=True, max_length=budget)["input_ids"] + after)


def qwen3_vl_ids(
    tokenizer: Any,
    query: list[str],
    document: list[str],
    instruction: str = QWEN3_VL_TASK,
    max_length: int = 10240,
) -> list[int]:
    """Qwen3-VL-Reranker's, of texts: a chat of parts."""

    def parts(tag: str, texts: list[str]) -> list[dict[str, str]]:
        return [{"type": "text", "text": text} for text in (tag, *(texts or ["NULL"]))]

    task = {"type": "text", "text": "<Instruct>: " + instruction}
    chat = [
        {"role": "system", "content": [{"type": "text", "text": JUDGE}]},
        {"role": "user", "content": [task, *parts("<Query>:", query), *parts("\n<Document>:", document)]},
    ]
    ids = tokenizer.apply_chat_template(
        chat, chat_template=VL_CHAT_TEMPLATE, add_generation_prompt=True, return_dict=False
    )
    return qwen3_vl_cut(ids, max_length)


QWEN3_VL_SPECIAL = range(151643, 151657)
"""The special tokens of the published checkpoints' tokenizer_config.json: <|endoftext|> to <|video_pad|>."""


def qwen3_vl_cut(ids: list[int], max_length: int) -> list[int]:
    """Past max_length plain tokens go, the last ones first; special tokens and the last 5 of all stay."""
    body, end = ids[:-5], ids[-5:]
    if len(body) <= max_length:
        return ids
    plain = [place for place, token in enumerate(body) if token not in QWEN3_VL_SPECIAL]
    gone = set(plain[max(max_length - (len(body) - len(plain)), 0) :])
    return [token for place, token in enumerate(body) if place not in gone] + end
