"""The configuration of a GGUF file's model as entries of config.json, and the names of its tensors in transformers.

Reference: `constants.py` and `tensor_mapping.py` of the package gguf, and the converters of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rerankd.core import ModelError
from rerankd.models.checkpoint.gguf.file import GgufFile
from rerankd.models.checkpoint.json_files import shown

RANK = 4
"""The value of `pooling_type` in a reranker."""
QWEN3 = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "cls.output": "score",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BERT = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


@dataclass(frozen=True, slots=True)
class Family:
    """How llama.cpp stores the models of a family.

    names: the name in transformers of each stored tensor; a layer's tensors have no layer prefix here
    layer: the prefix of a layer's tensors in transformers, with `{}` for the number of the layer
    configure: computes the entries of config.json
    base: the prefix in transformers of all names except for those in `head`
    head: the name in transformers of each stored tensor of the head
    first_position: number of first rows of the position table that llama.cpp leaves out
    """

    names: Mapping[str, str]
    layer: str
    configure: Callable[[GgufFile], dict[str, Any]]
    base: str = ""
    head: Mapping[str, str] | None = None
    first_position: int = 0

    def name_of(self, stored: str) -> str:
        """The name in transformers of a stored tensor; for an unknown tensor, the stored name."""
        stem, _, kind = stored.rpartition(".")
        if self.head is not None and stem in self.head:
            return f"{self.head[stem]}.{kind}"
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        name = self.names.get(layer[2] if layer else stem)
        if name is None:
            return f"layers.{layer[1]}.{layer[2]}.{kind}" if layer else stored
        return self.base + (self.layer.format(layer[1]) if layer else "") + f"{name}.{kind}"

    def stored_as(self, name: str) -> str:
        """The stored name of a tensor, by its name in transformers."""
        kind = name.rpartition(".")[2]
        for stem, known in {**self.names, **(self.head or {})}.items():
            if name.endswith(f"{known}.{kind}"):
                layer = re.search(r"\.(\d+)\.", name)
                return f"{f'blk.{layer[1]}.' if layer else ''}{stem}.{kind}"
        return name

    def skipped(self, name: str) -> int:
        """Number of first rows of a tensor that the file lacks."""
        return self.first_position if name.endswith("position_embeddings.weight") else 0

    def order(self, name: str, rows: int, file: GgufFile) -> list[int] | None:
        """The stored row for each row of a tensor in transformers; None if the order is the same."""
        labels = [label.lower() for label in file.list_of(f"{file.architecture}.classifier.output_labels", str)]
        return [1, 0] if name == "score.weight" and rows == 2 and labels == ["yes", "no"] else None


def family_of(file: GgufFile) -> Family:
    """The family of a file's model. Raises ModelError for an unsupported architecture."""
    match file.architecture:
        case "qwen3":
            return Family(QWEN3, "model.layers.{}.", _qwen3)
        case "bert" if file.get("tokenizer.ggml.model", str) == "t5":
            head = {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}
            return Family(BERT, "encoder.layer.{}.", _xlm_roberta, "roberta.", head, first_position=2)
        case "bert" if file.get("tokenizer.ggml.model", str) == "bert":
            head = {"cls": "bert.pooler.dense", "cls.output": "classifier"}
            return Family(BERT, "encoder.layer.{}.", _bert, "bert.", head)
        case "bert":
            kind = file.get("tokenizer.ggml.model", str)
            raise ModelError(f"{file.path} has a BERT model with the tokenizer {shown(kind)}, which is not supported.")
        case other:
            raise ModelError(f"{file.path} has the architecture {shown(other)}; only qwen3 and bert are supported.")


def config_of(file: GgufFile) -> dict[str, Any]:
    """The entries of config.json. Raises ModelError if the model is not a reranker, or if its file is incomplete."""
    return family_of(file).configure(file)


def _common(file: GgufFile, model_type: str, architecture: str) -> dict[str, Any]:
    name = file.get("general.name", str, "")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": file.height("token_embd.weight"),
        "hidden_size": file.model_value("embedding_length", int),
        "num_hidden_layers": file.model_value("block_count", int),
        "intermediate_size": file.model_value("feed_forward_length", int),
        "num_attention_heads": file.model_value("attention.head_count", int),
        "max_position_embeddings": file.model_value("context_length", int),
    } | ({"_name_or_path": re.sub(r"\s+", "-", name)} if name else {})


def _qwen3(file: GgufFile) -> dict[str, Any]:
    heads, hidden = file.model_value("attention.head_count", int), file.model_value("embedding_length", int)
    config = {
        "num_key_value_heads": file.model_value("attention.head_count_kv", int, heads),
        "head_dim": file.model_value("attention.key_length", int, hidden // max(heads, 1)),
        "rms_norm_eps": file.model_value("attention.layer_norm_rms_epsilon", float),
        "rope_parameters": {"rope_theta": file.model_value("rope.freq_base", float)} | _scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if "cls.output.weight" not in file.tensors:
        pools = file.model_value("pooling_type", int, 0) not in (0, RANK)
        if pools or file.get("tokenizer.ggml.add_eos_token", bool, False):
            entry = "pooling_type" if pools else "tokenizer.ggml.add_eos_token"
            raise ModelError(f"{file.path} is not a reranker: its `{entry}` is that of an embedding model.")
        return _common(file, "qwen3", "Qwen3ForCausalLM") | config
    labels = file.list_of("qwen3.classifier.output_labels", str)
    rows = file.height("cls.output.weight")
    if rows == 2 and sorted(label.lower() for label in labels) != ["no", "yes"]:
        raise ModelError(f"{file.path}: `qwen3.classifier.output_labels` must be yes and no, not {shown(labels)}.")
    config |= {"num_labels": rows}
    if rows == 2:
        # The converter of llama.cpp writes two such rows only for the answers "yes" and "no" of Qwen3-Reranker.
        config |= {"is_original_qwen3_reranker": True}
    return _common(file, "qwen3", "Qwen3ForSequenceClassification") | config


def _scaling(file: GgufFile) -> dict[str, Any]:
    kind = file.model_value("rope.scaling.type", str, "none")
    if kind == "none":
        return {"rope_type": "default"}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": file.model_value("rope.scaling.factor", float)}
    original = file.model_value("rope.scaling.original_context_length", int, 0)
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def _encoder(file: GgufFile, model_type: str, architecture: str) -> dict[str, Any]:
    missing = [f"{name}.weight" for name in ("cls", "cls.output") if f"{name}.weight" not in file.tensors]
    if file.model_value("pooling_type", int, 0) != RANK:
        raise ModelError(f"{file.path} is not a reranker: its `bert.pooling_type` is not {RANK} (rank).")
    if missing:
        raise ModelError(
            f"{file.path} has no `{missing[0]}`: the converter of llama.cpp leaves out the pooler of BERT rerankers, "
            "and without the pooler their scores are wrong. Serve the model from which the file was converted."
        )
    labels = file.height("cls.output.weight")
    names = file.list_of("bert.classifier.output_labels", str)
    return _common(file, model_type, architecture) | {
        "layer_norm_eps": file.model_value("attention.layer_norm_epsilon", float),
        "max_position_embeddings": file.height("position_embd.weight"),
        "type_vocab_size": file.height("token_types.weight"),
        "id2label": {str(i): names[i] if len(names) == labels else f"LABEL_{i}" for i in range(labels)},
    }


def _bert(file: GgufFile) -> dict[str, Any]:
    return _encoder(file, "bert", "BertForSequenceClassification")


def _xlm_roberta(file: GgufFile) -> dict[str, Any]:
    config = _encoder(file, "xlm-roberta", "XLMRobertaForSequenceClassification")
    return config | {"pad_token_id": 1, "max_position_embeddings": config["max_position_embeddings"] + 2}
