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
    room = max_length - len(before) - len(after)
    return list(before + tokenizer(judged, truncation=True, max_length=room)["input_ids"] + after)


def qwen3_vl_ids(
    tokenizer: Any,
    query: list[str],
    document: list[str],
    instruction: str = QWEN3_VL_TASK,
    max_length: int = 10240,
) -> list[int]:
    """Qwen3-VL-Reranker's, of texts: a chat of parts; past max_length plain tokens go, special and last 5 stay."""

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
    body, end = ids[:-5], ids[-5:]
    special = set(tokenizer.all_special_ids)
    plain_room = max_length - sum(token in special for token in body)
    kept: list[int] = []
    for token in body:
        if token in special:
            kept.append(token)
        elif plain_room > 0:
            kept.append(token)
            plain_room -= 1
    return kept + end
