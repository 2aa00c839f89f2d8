"""Seeded random checkpoints of rerankers with a row of scores after each layer from some one on.

transformers has no class of either: MiniCPM has Llama's weights, and the other one Gemma 2's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import vocabularies
from tests.checkpoints import Storage, randomise, store
from tests.decoder_checkpoints import PLAIN, SIZE
from tests.encoder_checkpoints import edit

LAYERS, START = 4, 2


def with_rows(folder: Path, rows: int, spread: float) -> None:
    """Put rows of scores in place of the head over the vocabulary."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("lm_head")}
    generator = torch.Generator().manual_seed(3)
    for i in range(rows):
        row = torch.randn(1, SIZE["hidden_size"], generator=generator) * spread / SIZE["hidden_size"] ** 0.5
        tensors[f"lm_head.{i}.linear_head.weight"] = row.to(tensors["model.norm.weight"].dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def minicpm(folder: Path, *, storage: Storage = PLAIN, **own: Any) -> Path:
    """bge-reranker-v2-minicpm-layerwise's architecture, with a tokenizer that begins each text with a space.

    own: entries of the configuration
    """
    vocabulary = vocabularies.llama()
    config = transformers.LlamaConfig(
        vocab_size=vocabularies.size(vocabulary), max_position_embeddings=2048, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **(SIZE | {"num_hidden_layers": LAYERS}),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    randomise(model, 1.0)
    store(model, folder, Storage(storage.dtype, old_keys=True))
    with_rows(folder, LAYERS - START + 1, 0.4)
    entries = {
        "architectures": ["LayerWiseMiniCPMForCausalLM"], "model_type": "minicpm", "scale_emb": 12,
        "scale_depth": 1.4, "dim_model_base": 16, "start_layer": START, "head_type": "simple", "head_multi": True,
    }  # fmt: skip
    edit(folder, **(entries | own))
    vocabularies.write(
        folder, vocabulary, tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", unk_token="<unk>", model_max_length=2048,
    )  # fmt: skip
    return folder


def gemma2(folder: Path, *, storage: Storage = PLAIN, **own: Any) -> Path:
    """bge-reranker-v2.5-gemma2-lightweight's architecture, with a window and a bound of the score that bite.

    own: entries of the configuration
    """
    vocabulary = vocabularies.gemma()
    config = transformers.Gemma2Config(
        vocab_size=vocabularies.size(vocabulary), max_position_embeddings=8192, query_pre_attn_scalar=24,
        attn_logit_softcapping=1.5, final_logit_softcapping=1.0, sliding_window=16, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, head_dim=32,
        **(SIZE | {"num_hidden_layers": LAYERS}),
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    randomise(model, 0.8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # of which the weight minus 1 is stored
                parameter.sub_(1.0)
    store(model, folder, Storage(storage.dtype, old_keys=True))
    with_rows(folder, LAYERS - START + 1, 0.25)
    entries = {
        "architectures": ["CostWiseGemmaForCausalLM"], "model_type": "cost_wise_gemma", "start_layer": START,
        "layer_sep": 1, "layer_wise": True,
    }  # fmt: skip
    edit(folder, **(entries | own))
    vocabularies.write(
        folder, vocabulary, tokenizer_class="PreTrainedTokenizerFast", bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>", model_max_length=8192,
    )  # fmt: skip
    return folder
