"""Seeded random checkpoints of encoder families, by transformers' own classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import vocabularies
from tests.checkpoints import ENCODER_SIZES, Storage, classifier, store, write_roberta_tokenizer, xlmr

PLAIN = Storage()


def write_bert_tokenizer(folder: Path) -> None:
    settings = json.loads((vocabularies.minilm_folder() / "tokenizer_config.json").read_text())
    vocabularies.write(folder, vocabularies.bert(), **settings)


def rename(folder: Path, names: dict[str, str]) -> None:
    """Give weights other names, by regular expressions; equal ones are put below one another in their order."""
    path = folder / "model.safetensors"
    found: dict[str, list[torch.Tensor]] = {}
    for name, tensor in load_file(path).items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        found.setdefault(name, []).append(tensor)
    tensors = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def jina_v2(folder: Path, *, labels: int = 1, storage: Storage = PLAIN) -> Path:
    """jina-reranker-v2's names of XLM-R's weights; `original/` holds the same by transformers' names."""
    original = folder / "original"
    original.mkdir()
    xlmr(original, labels=labels, storage=storage)
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    # Query, key and value in the order in which they lie below one another.
    order = sorted(tensors, key=lambda name: (".query." not in name, ".key." not in name))
    save_file({f"{i:03}.{name}": tensors[name] for i, name in enumerate(order)}, folder / "model.safetensors")
    rename(
        folder,
        {
            r"^\d+\.": "",
            r"attention\.self\.(query|key|value)": "mixer.Wqkv",
            r"embeddings\.LayerNorm": "emb_ln",
            r"encoder\.layer\.": "encoder.layers.",
            r"attention\.output\.dense": "mixer.out_proj",
            r"attention\.output\.LayerNorm": "norm1",
            r"intermediate\.dense": "mlp.fc1",
            r"(layers\.\d+)\.output\.dense": r"\1.mlp.fc2",
            r"(layers\.\d+)\.output\.LayerNorm": r"\1.norm2",
        },
    )
    return folder


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}, indent=2))


def deberta_v2(folder: Path, *, labels: int = 1, form: str = "v3", storage: Storage = PLAIN) -> Path:
    """mxbai-rerank-v1's architecture; "v2" has tables of its own for each layer, and no logarithmic scale."""
    own: dict[str, Any] = {
        "v3": {
            "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p",
            "position_biased_input": False, "max_relative_positions": -1,
        },
        "v2": {
            "share_att_key": False, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 24, "type_vocab_size": 2,
        },
        "c2p": {"share_att_key": True, "pos_att_type": ["c2p"], "max_relative_positions": 300, "embedding_size": 48},
    }[form]  # fmt: skip
    config = transformers.DebertaV2Config(
        vocab_size=30522, num_labels=labels, relative_attention=True, **(ENCODER_SIZES["tiny"] | own)
    )
    classifier(transformers.DebertaV2ForSequenceClassification(config), folder, storage, 3, 1.6)
    write_bert_tokenizer(folder)
    return folder


def electra(folder: Path, *, labels: int = 1, storage: Storage = PLAIN) -> Path:
    """ms-marco-electra-base's architecture."""
    config = transformers.ElectraConfig(vocab_size=30522, embedding_size=64, num_labels=labels, **ENCODER_SIZES["tiny"])
    classifier(transformers.ElectraForSequenceClassification(config), folder, storage, 1, 2.0)
    write_bert_tokenizer(folder)
    return folder


def distilbert(folder: Path, *, labels: int = 1, storage: Storage = PLAIN) -> Path:
    config = transformers.DistilBertConfig(
        vocab_size=30522, dim=64, hidden_dim=128, n_layers=3, n_heads=4, num_labels=labels
    )
    classifier(transformers.DistilBertForSequenceClassification(config), folder, storage, 2, 2.0)
    write_bert_tokenizer(folder)
    return folder


def mpnet_config(labels: int = 1) -> Any:
    """MPNet's, over RoBERTa's kind of vocabulary."""
    return transformers.MPNetConfig(
        vocab_size=vocabularies.size(vocabularies.roberta()), max_position_embeddings=514, num_labels=labels,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, relative_attention_num_buckets=32, **ENCODER_SIZES["tiny"],
    )  # fmt: skip


def spread_biases(model: Any) -> None:
    """Make the biases of distance large enough to matter."""
    table = next(p for name, p in model.named_parameters() if name.endswith("relative_attention_bias.weight"))
    with torch.no_grad():
        table.mul_(20)


def mpnet(folder: Path, *, labels: int = 1, storage: Storage = PLAIN) -> Path:
    """A cross-encoder over MPNet."""
    model = transformers.MPNetForSequenceClassification(mpnet_config(labels))
    classifier(model, folder, storage, 2, 2.0)
    spread_biases(model)
    store(model, folder, storage)
    write_roberta_tokenizer(folder, vocabularies.roberta(), "RobertaTokenizer", 514)
    return folder


def camembert(folder: Path, *, labels: int = 1, storage: Storage = PLAIN) -> Path:
    vocabulary = vocabularies.xlm_roberta()
    config = transformers.CamembertConfig(
        vocab_size=vocabularies.size(vocabulary), max_position_embeddings=514, type_vocab_size=1, num_labels=labels,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, **ENCODER_SIZES["tiny"],
    )  # fmt: skip
    classifier(transformers.CamembertForSequenceClassification(config), folder, storage, 6, 2.0)
    write_roberta_tokenizer(folder, vocabulary, "CamembertTokenizer", 514)
    return folder


def gte(folder: Path, *, labels: int = 1, form: str = "gte", storage: Storage = PLAIN) -> Path:
    """gte-multilingual-reranker's architecture; "new" has the authors' config.json, with scaled positions."""
    vocabulary = vocabularies.xlm_roberta()
    config = transformers.GteConfig(
        vocab_size=vocabularies.size(vocabulary), num_labels=labels, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 160000.0}, **ENCODER_SIZES["tiny"],
    )  # fmt: skip
    classifier(transformers.GteForSequenceClassification(config), folder, storage, 5, 2.0)
    write_roberta_tokenizer(folder, vocabulary, "XLMRobertaTokenizer", 8194)
    if form == "new":
        rename(folder, {r"^gte\.": "new."})
        edit(
            folder, architectures=["NewForSequenceClassification"], model_type="new", rope_parameters=...,
            rope_theta=20000, rope_scaling={"factor": 8.0, "type": "ntk"}, layer_norm_type="layer_norm", pack_qkv=True,
            position_embedding_type="rope", logn_attention_scale=False, unpad_inputs=False,
            auto_map={"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"},
        )  # fmt: skip
    return folder


ENCODERS: list[tuple[str, Callable[..., Path], dict[str, Any]]] = [
    ("deberta-v3", deberta_v2, {}),
    ("deberta-v3-two-labels", deberta_v2, {"labels": 2}),
    ("deberta-v2", deberta_v2, {"form": "v2"}),
    ("deberta-c2p", deberta_v2, {"form": "c2p"}),
    ("electra", electra, {}),
    ("distilbert", distilbert, {}),
    ("distilbert-two-labels", distilbert, {"labels": 2}),
    ("camembert", camembert, {}),
    ("mpnet", mpnet, {}),
    ("mpnet-two-labels", mpnet, {"labels": 2}),
    ("jina-v2", jina_v2, {}),
    ("gte", gte, {}),
    ("gte-new", gte, {"form": "new"}),
]
