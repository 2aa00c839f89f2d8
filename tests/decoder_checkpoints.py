"""Seeded random checkpoints of decoder families, by transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, processors

from tests import vocabularies
from tests.checkpoints import QWEN_CHAT_TEMPLATE, Storage, randomise, store, widen_rows, write_qwen_tokenizer
from tests.encoder_checkpoints import edit

PLAIN = Storage()
BEGIN = "<|begin_of_text|>"
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def language_model(model: Any, folder: Path, storage: Storage, answers: Sequence[int], spread: float) -> None:
    """Fill a language model, the logits of `answers` spread over the documents, and write it."""
    randomise(model, 0.8)
    if model.config.model_type == "gemma":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # of which the weight minus 1 is stored
                    parameter.sub_(1.0)
    widen_rows(model.lm_head.weight, tuple(answers), spread)
    store(model, folder, storage)


def chats(folder: Path) -> None:
    """Give a folder the chat template of Qwen's chat models, which mxbai-rerank-v2 has too."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": QWEN_CHAT_TEMPLATE}))


def qwen2(
    folder: Path, *, tied: bool = True, rows: int = 0, answers: Sequence[int] = (15, 16), storage: Storage = PLAIN
) -> Path:
    """mxbai-rerank-v2's architecture, or as many `rows` of a classifier over it; it has biases of query, key, value."""
    config = transformers.Qwen2Config(
        vocab_size=151936, max_position_embeddings=32768, tie_word_embeddings=tied, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, bos_token_id=151643, eos_token_id=151645,
        pad_token_id=151643, **SIZE,
    )  # fmt: skip
    if rows:
        config.num_labels = rows
        model = transformers.Qwen2ForSequenceClassification(config)
        randomise(model, 0.8)
        with torch.no_grad():
            model.score.weight.mul_(1.0 if rows == 1 else 0.8)
        store(model, folder, storage)
    else:
        language_model(transformers.Qwen2ForCausalLM(config), folder, storage, answers, 0.4)
    write_qwen_tokenizer(folder)
    chats(folder)
    return folder


def gemma(folder: Path, *, tied: bool = True, storage: Storage = PLAIN, **own: Any) -> Path:
    """bge-reranker-v2-gemma's architecture: one head of key and value, of its true width.

    own: entries of the configuration
    """
    vocabulary = vocabularies.gemma()
    sizes = SIZE | {"num_key_value_heads": 1, "head_dim": 256}
    config = transformers.GemmaConfig(
        vocab_size=vocabularies.size(vocabulary), max_position_embeddings=8192, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **sizes,
    )  # fmt: skip
    vocabularies.write(
        folder, vocabulary, tokenizer_class="PreTrainedTokenizerFast", bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>", model_max_length=8192,
    )  # fmt: skip
    yes = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("Yes")
    model = transformers.GemmaForCausalLM(config)
    language_model(model, folder, storage, (yes,), 0.3)
    edit(folder, **own)
    return folder


def write_llama3_tokenizer(folder: Path, *special: str, length: int = 131072) -> None:
    """A byte-level BPE of Llama 3's kind, over Qwen's pieces: it puts `<|begin_of_text|>` before a text.

    special: more special tokens
    """
    tokenizer = Tokenizer.from_str(vocabularies.qwen())
    tokenizer.normalizer = None
    tokenizer.add_special_tokens([BEGIN, "<|eot_id|>", *special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    vocabularies.write(
        folder, tokenizer.to_str(), tokenizer_class="PreTrainedTokenizerFast", bos_token=BEGIN,
        eos_token="<|eot_id|>", pad_token="<|eot_id|>", model_max_length=length,
    )  # fmt: skip


def nemotron(folder: Path, *, labels: int = 1, storage: Storage = PLAIN, **own: Any) -> Path:
    """llama-nemotron-rerank's architecture, whose class transformers has only with a causal mask.

    own: entries of the configuration
    """
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=151936, max_position_embeddings=2048, rope_parameters=rope, num_labels=labels, head_dim=32,
        tie_word_embeddings=True, pad_token_id=0, **SIZE,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config)
    randomise(model, 1.0)
    with torch.no_grad():
        model.score.weight.mul_(2.0)
    store(model, folder, storage)
    edit(
        folder, architectures=["LlamaBidirectionalForSequenceClassification"], model_type="llama_bidirec",
        auto_map={"AutoModelForSequenceClassification": "llama_bidirectional_model.LlamaBidirectional"},
        **({"pooling": "avg"} | own),
    )  # fmt: skip
    write_llama3_tokenizer(folder)
    return folder
