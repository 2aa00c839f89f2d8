"""GGUF files of tiny checkpoints, as llama.cpp's converters write them (conversion/bert.py and conversion/qwen.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

YES, NO = 9693, 2152
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
TENSORS: Mapping[str, Mapping[str, str]] = {
    "qwen3": {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
        "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
        "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
        "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
        "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
        "model.layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm",
        "model.layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
        "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
        "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
        "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
        "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
    },
    "bert": {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
        "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
        "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
        "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
        "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
        "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
        "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
        "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
        "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
        "pooler.dense": "cls",
        "classifier": "cls.output",
        "classifier.dense": "cls",
        "classifier.out_proj": "cls.output",
    },
}

PLAIN = ("position_embd.weight", "token_types.weight")
"""Matrices that stay in float32: llama.cpp adds their rows to others."""


def stored_name(name: str, family: str) -> str:
    stem, _, kind = re.sub(r"^(bert|roberta)\.", "", name).rpartition(".")
    number = re.search(r"\.(\d+)\.", stem)
    known = TENSORS[family][stem.replace(number[0], ".{}.", 1) if number else stem]
    return f"{known.format(number[1]) if number else known}.{kind}"


def write_gguf(source: Path, path: Path, kind: str = "F32", plain: Path | None = None, **changes: Any) -> Path:
    """The checkpoint in `source` as a GGUF file, its matrices in `kind` where that fits them.

    plain: a copy of the checkpoint, whose weights become what the file's stand for
    changes: metadata in place of the converter's; `rank` is whether Qwen3 gets a head of "yes" and "no", `skip` names
        tensors that are left out, `extra` are the blocks of one more, of `kind_of_extra`
    """
    config = json.loads((source / "config.json").read_text())
    family = "qwen3" if config["model_type"] == "qwen3" else "bert"
    rank, skip = changes.pop("rank", True), changes.pop("skip", ())
    extra, extra_kind = changes.pop("extra", None), changes.pop("kind_of_extra", "F32")
    writer = GGUFWriter(path, changes.pop("architecture", family))
    tensors = load_file(source / "model.safetensors")
    metadata = _qwen3(config, rank) if family == "qwen3" else _encoder(config)
    for name, value in (metadata | _tokenizer(source, config) | changes).items():
        _add(writer, name, value)
    found = dict(tensors)
    head = tensors.get("lm_head.weight", tensors.get("model.embed_tokens.weight"))
    for name, tensor in tensors.items():
        stored = stored_name(name, family)
        if stored in skip or (rank and stored == "output.weight"):
            continue
        values = tensor.float().numpy()
        if stored == "position_embd.weight" and config["model_type"] == "xlm-roberta":
            values = values[config["pad_token_id"] + 1 :]
        stored_kind = "F32" if values.ndim == 1 or stored in PLAIN else kind
        written = values if stored_kind == "F32" else quantize(values, GGMLQuantizationType[kind])
        _tensor(writer, stored, written, stored_kind)
        if plain is not None and stored_kind != "F32":
            found[name] = torch.from_numpy(dequantize(written, GGMLQuantizationType[kind]))
    if family == "qwen3" and rank:
        assert head is not None
        _tensor(writer, "cls.output.weight", head[[YES, NO]].float().numpy(), "F32")
    if extra is not None:
        _tensor(writer, "extra.weight", extra, extra_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if plain is not None:
        save_file(found, plain / "model.safetensors", metadata={"format": "pt"})
    return path


def _tensor(writer: GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    writer.add_tensor(name, values, raw_dtype=None if kind in ("F32", "F16") else GGMLQuantizationType[kind])


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)


def _qwen3(config: dict[str, Any], rank: bool) -> dict[str, Any]:
    entries = {
        "general.name": "Qwen3 Reranker Tiny",
        "qwen3.block_count": config["num_hidden_layers"],
        "qwen3.context_length": config["max_position_embeddings"],
        "qwen3.embedding_length": config["hidden_size"],
        "qwen3.feed_forward_length": config["intermediate_size"],
        "qwen3.attention.head_count": config["num_attention_heads"],
        "qwen3.attention.head_count_kv": config["num_key_value_heads"],
        "qwen3.attention.key_length": config["head_dim"],
        "qwen3.attention.value_length": config["head_dim"],
        "qwen3.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "qwen3.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    }
    labels = {"qwen3.pooling_type": 4, "qwen3.classifier.output_labels": ["yes", "no"]}
    return entries | (labels if rank else {})


def _encoder(config: dict[str, Any]) -> dict[str, Any]:
    offset = config["pad_token_id"] + 1 if config["model_type"] == "xlm-roberta" else 0
    return {
        "bert.block_count": config["num_hidden_layers"],
        "bert.context_length": config["max_position_embeddings"] - offset,
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": config["layer_norm_eps"],
        "bert.attention.causal": False,
        "bert.pooling_type": 4,
        "bert.classifier.output_labels": ["LABEL_0"],
        "tokenizer.ggml.token_type_count": config["type_vocab_size"],
    }


def _tokenizer(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    model = tokenizer["model"]
    vocabulary = (
        {token: i for i, (token, _) in enumerate(model["vocab"])} if model["type"] == "Unigram" else model["vocab"]
    )
    tokens = {i: token for token, i in vocabulary.items()} | {i: token["content"] for i, token in added.items()}

    def kind(i: int) -> int:
        if i not in tokens:
            return UNUSED
        return (CONTROL if added[i]["special"] else USER_DEFINED) if i in added else NORMAL

    kinds = [kind(i) for i in range(config["vocab_size"])]
    listed = [tokens.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    common: dict[str, Any] = {"tokenizer.ggml.token_type": kinds}
    if model["type"] == "BPE":
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        kind_of = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": merges}
        return common | kind_of | {"tokenizer.ggml.tokens": listed}
    if model["type"] == "Unigram":
        kinds[3] = UNKNOWN
        scores = [float(score) for _, score in model["vocab"]]
        scores += [0.0] * (config["vocab_size"] - len(scores))
        special = {"bos": 0, "eos": 2, "unknown": 3, "seperator": 2, "padding": 1}
        common |= {"tokenizer.ggml.model": "t5", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": scores}
        common |= {"tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.remove_extra_whitespaces": True}
    else:
        special = {"bos": 101, "eos": 102, "seperator": 102, "unknown": 100, "padding": 0}
        common |= {"tokenizer.ggml.model": "bert", "tokenizer.ggml.pre": "default"}
        listed = [
            token if kind == CONTROL else token[2:] if token.startswith("##") else f"\u2581{token}"
            for token, kind in zip(listed, kinds, strict=True)
        ]
    # Of a pair: [bos] query [eos] [sep] document [eos], and XLM-R alone has two tokens in the middle.
    added_to_pairs = {"bos": True, "eos": True, "sep": model["type"] == "Unigram"}
    common |= {f"tokenizer.ggml.add_{name}_token": whether for name, whether in added_to_pairs.items()}
    ids = {f"tokenizer.ggml.{name}_token_id": number for name, number in special.items()}
    return common | ids | {"tokenizer.ggml.tokens": listed}
