"""Seeded random checkpoints of bi-encoders, saved by sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from tests import modernbert_checkpoints, vocabularies
from tests.checkpoints import (
    ENCODER_SIZES,
    QWEN3_SIZES,
    Storage,
    randomise,
    roberta_config,
    store,
    write_roberta_tokenizer,
)
from tests.encoder_checkpoints import mpnet_config, write_bert_tokenizer

QWEN3_EMBEDDING_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def qwen3(folder: Path, storage: Storage) -> None:
    """With a small tokenizer of the kind, which puts one token behind a text."""
    tokenizer = json.loads(vocabularies.roberta())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    config = transformers.Qwen3Config(
        vocab_size=vocabularies.size(vocabularies.roberta()), max_position_embeddings=32768, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **QWEN3_SIZES["tiny"],
    )  # fmt: skip
    save(transformers.Qwen3Model(config), folder, storage)
    vocabularies.write(
        folder, json.dumps(tokenizer), tokenizer_class="PreTrainedTokenizerFast", padding_side="left",
        pad_token="<pad>", eos_token="</s>", model_max_length=32768,
    )  # fmt: skip


def bert(folder: Path, storage: Storage) -> None:
    config = transformers.BertConfig(vocab_size=30522, max_position_embeddings=512, **ENCODER_SIZES["tiny"])
    save(transformers.BertModel(config), folder, storage)
    write_bert_tokenizer(folder)


def roberta(folder: Path, storage: Storage) -> None:
    vocabulary = vocabularies.roberta()
    save(transformers.RobertaModel(roberta_config(transformers.RobertaConfig, vocabulary, "tiny")), folder, storage)
    write_roberta_tokenizer(folder, vocabulary, "RobertaTokenizer", 1026)


def distilbert(folder: Path, storage: Storage) -> None:
    """With the class that it was trained in, and the weights of that."""
    config = transformers.DistilBertConfig(vocab_size=30522, dim=64, hidden_dim=128, n_layers=3, n_heads=4)
    save(transformers.DistilBertForMaskedLM(config), folder, storage)
    write_bert_tokenizer(folder)


def deberta_v2(folder: Path, storage: Storage) -> None:
    config = transformers.DebertaV2Config(
        vocab_size=30522, relative_attention=True, position_buckets=16, share_att_key=True, norm_rel_ebd="layer_norm",
        pos_att_type="p2c|c2p", position_biased_input=False, **ENCODER_SIZES["tiny"],
    )  # fmt: skip
    save(transformers.DebertaV2Model(config), folder, storage)
    write_bert_tokenizer(folder)


def electra(folder: Path, storage: Storage) -> None:
    config = transformers.ElectraConfig(vocab_size=30522, embedding_size=64, **ENCODER_SIZES["tiny"])
    save(transformers.ElectraModel(config), folder, storage)
    write_bert_tokenizer(folder)


def gte(folder: Path, storage: Storage) -> None:
    vocabulary = vocabularies.xlm_roberta()
    config = transformers.GteConfig(
        vocab_size=vocabularies.size(vocabulary), bos_token_id=0, pad_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 160000.0}, **ENCODER_SIZES["tiny"],
    )  # fmt: skip
    save(transformers.GteModel(config), folder, storage)
    write_roberta_tokenizer(folder, vocabulary, "XLMRobertaTokenizer", 8194)


def mpnet(folder: Path, storage: Storage) -> None:
    save(transformers.MPNetForMaskedLM(mpnet_config()), folder, storage)
    write_roberta_tokenizer(folder, vocabularies.roberta(), "RobertaTokenizer", 514)


def modernbert(folder: Path, storage: Storage) -> None:
    save(transformers.ModernBertModel(modernbert_checkpoints.config()), folder, storage)
    modernbert_checkpoints.write_tokenizer(folder)


def save(model: Any, folder: Path, storage: Storage) -> None:
    randomise(model, 1.5, 4)
    store(model, folder, storage)


BACKBONES: Mapping[str, Callable[[Path, Storage], None]] = {
    maker.__name__: maker for maker in (qwen3, bert, roberta, distilbert, deberta_v2, electra, gte, mpnet, modernbert)
}


def embedder(
    folder: Path,
    *,
    backbone: str = "bert",
    pooling: Sequence[str] | str = "mean",
    dense: Sequence[Mapping[str, Any]] = (),
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    storage: Storage = Storage(),  # noqa: B008 - frozen
    **options: Any,
) -> Path:
    """A sentence-transformers folder; `source/` holds its backbone.

    dense: arguments of each module Dense; options: those of SentenceTransformer
    """
    source = folder / "source"
    source.mkdir()
    BACKBONES[backbone](source, storage)
    modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    modules: list[Any] = [Transformer(str(source)), Pooling(64, pooling_mode=modes)]
    width = 64 * len(modes)
    for seed, arguments in enumerate(dense):
        modules.append(Dense(width, **arguments))
        randomise(modules[-1], 1.5, seed)
        width = modules[-1].out_features
    modules += [Normalize()] if normalize else []
    model = SentenceTransformer(modules=modules, device="cpu", prompts=dict(prompts or {}), **options)
    if storage.dtype == "bfloat16":
        model[0].to(torch.bfloat16)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
