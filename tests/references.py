"""Scores by independent means: transformers' own forward on the prompts of the models' published scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Pair = tuple[str, str]

QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3_PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@torch.inference_mode()
def qwen3_scores(folder: Path, pairs: Sequence[Pair], instruction: str = QWEN3_INSTRUCTION) -> list[float]:
    """P(yes) against no, after the model card's prompt, one pair at a time in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    scores = []
    for query, document in pairs:
        prompt = QWEN3_PROMPT.format(instruction=instruction, query=query, document=document)
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        logits = model(**inputs, logits_to_keep=1).logits[0, -1]
        scores.append(logits[[no, yes]].softmax(0)[1].item())
    return scores


@torch.inference_mode()
def qwen3_classifier_scores(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """The same prompts through a converted checkpoint's score rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, document in pairs:
        prompt = QWEN3_PROMPT.format(instruction=QWEN3_INSTRUCTION, query=query, document=document)
        logits = model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False)).logits[0]
        scores.append((logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(0)[1]).item())
    return scores


@torch.inference_mode()
def cross_encoder_scores(folder: Path, pairs: Sequence[Pair]) -> list[float]:
    """A sequence classifier over the tokenizer's own pairs, one at a time in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for query, document in pairs:
        inputs = tokenizer(query, document, return_tensors="pt", truncation=True)
        logits = model(**inputs).logits[0]
        scores.append((logits.sigmoid()[0] if len(logits) == 1 else logits.softmax(0)[1]).item())
    return scores
