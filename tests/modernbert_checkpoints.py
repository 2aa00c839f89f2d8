"""Seeded random checkpoints of ModernBERT: rerankers with a classifier, and ettin's chain of modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from tests import vocabularies
from tests.checkpoints import Storage, randomise, store
from tests.encoder_checkpoints import edit

PLAIN = Storage()


def config(labels: int = 1, **own: Any) -> Any:
    """Layers that attend to all tokens and to 8 on each side, in turn."""
    settings: dict[str, Any] = {
        "vocab_size": 30522,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
        "local_attention": 16,
        "num_labels": labels,
        "pad_token_id": 0,
        "cls_token_id": 101,
        "bos_token_id": 101,
        "sep_token_id": 102,
        "eos_token_id": 102,
    }
    return transformers.ModernBertConfig(**(settings | own))


def write_tokenizer(folder: Path) -> None:
    """BERT's vocabulary: what stands around a pair is ModernBERT's, which has no token types."""
    tokenizer = json.loads(vocabularies.bert())
    for name in ("single", "pair"):
        for part in tokenizer["post_processor"].get(name, ()):
            next(iter(part.values()))["type_id"] = 0
    vocabularies.write(
        folder,
        json.dumps(tokenizer),
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


def modernbert(folder: Path, *, labels: int = 1, old: bool = False, storage: Storage = PLAIN, **own: Any) -> Path:
    """gte-reranker-modernbert's class.

    old: the configuration of published models: `global_rope_theta` and its like
    own: entries of the configuration
    """
    model = transformers.ModernBertForSequenceClassification(config(labels, **own))
    randomise(model, 1.0, 3)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5 / labels)
    store(model, folder, storage)
    if old:
        edit(
            folder, rope_parameters=..., layer_types=..., global_rope_theta=160000.0, local_rope_theta=10000.0,
            global_attn_every_n_layers=3,
        )  # fmt: skip
    write_tokenizer(folder)
    return folder


def ettin(folder: Path, *, labels: int = 1, pooling: str = "cls", storage: Storage = PLAIN) -> Path:
    """ettin-reranker's chain: Transformer, Pooling, Dense with GELU, LayerNorm, Dense."""
    source = folder / "source"
    source.mkdir()
    model = transformers.ModernBertModel(config())
    randomise(model, 1.0, 3)
    store(model, source, storage)
    write_tokenizer(source)
    modules: list[Any] = [
        Transformer(str(source)),
        Pooling(64, pooling_mode=pooling),
        Dense(64, 64, bias=False, activation_function=torch.nn.GELU()),
        LayerNorm(64),
        Dense(64, labels, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    for seed, module in enumerate(modules[2:]):
        randomise(module, 1.0, seed)
    activation = torch.nn.Identity() if labels == 1 else None
    saved = CrossEncoder(modules=modules, device="cpu", activation_fn=activation)
    saved.save_pretrained(str(folder), create_model_card=False)
    return folder
