"""Seeded random checkpoints of rerankers that see images, other than Qwen3-VL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file

from tests.checkpoints import Storage, randomise, with_old_keys, write_qwen_tokenizer
from tests.decoder_checkpoints import write_llama3_tokenizer

PLAIN = Storage()
M0_TEXT: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}  # fmt: skip
M0_VISION: dict[str, Any] = {
    "depth": 2, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 4, "hidden_size": 64, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip


Form = Literal["published", "saved"]


def jina_m0(folder: Path, *, form: Form = "published", storage: Storage = PLAIN) -> Path:
    """jina-reranker-m0: Qwen2-VL without a vocabulary's head, and two linear layers.

    form: the names of weights and entries as published, or as transformers 5 saves them
    """
    config = transformers.Qwen2VLConfig(text_config=M0_TEXT, vision_config=M0_VISION)
    write_jina_m0(folder, config, form, storage)
    write_qwen_tokenizer(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    return folder


def write_jina_m0(folder: Path, config: Any, form: Form, storage: Storage) -> None:
    """Weights and config.json of a Qwen2VLConfig."""
    width = config.text_config.hidden_size
    model = transformers.Qwen2VLModel(config)
    score = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    randomise(model, 0.8)
    randomise(score, 1.0, seed=3)
    with torch.no_grad():
        score[2].weight.mul_(2.0)
        score[2].bias.add_(2.65)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    entries = config.to_dict()
    if form == "published":
        tensors = {
            name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
            for name, tensor in tensors.items()
        }
        del entries["vision_config"]["rope_parameters"]
        # All entries of the language model lie beside the others.
        entries = with_old_keys({**entries.pop("text_config"), **entries})
    tensors |= {f"score.{name}": tensor for name, tensor in score.state_dict().items()}
    dtype = getattr(torch, storage.dtype)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    entries |= {
        "architectures": ["JinaVLForRanking"], "model_type": "qwen2_vl", "auto_map": {"AutoModel": "modeling.JinaVL"}
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(entries, indent=2))


VL_TEXT: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 16384, "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip
VL_VISION: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 512,
    "patch_size": 16,
}  # fmt: skip


def nemotron_vl(folder: Path, *, side: int = 512, storage: Storage = PLAIN, **own: Any) -> Path:
    """llama-nemotron-rerank-vl: SigLIP, a projection of four patches, and a Llama whose class is nvidia's own.

    side: pixels along a tile's side; own: entries of the configuration
    """
    write_nemotron_vl(folder, VL_TEXT, VL_VISION | {"image_size": side}, storage, **own)
    write_llama3_tokenizer(folder, "<IMG_CONTEXT>", "<img>", "</img>", length=10240)
    processor = {
        "processor_class": "LlamaNemotronVLRerankProcessor", "max_input_tiles": 6, "use_thumbnail": True,
        "force_image_size": side, "num_image_token": (side // 32) ** 2, "prompt_template": "v1",
        "dynamic_image_size": True, "rerank_max_length": None, "image_size": side, "norm_type": "siglip",
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    return folder


def write_nemotron_vl(
    folder: Path, text: dict[str, Any], vision: dict[str, Any], storage: Storage = PLAIN, **own: Any
) -> None:
    """Weights and config.json of a language model and a vision tower of these sizes; own: other entries."""
    llama, siglip = transformers.LlamaConfig(**text), transformers.SiglipVisionConfig(**vision)
    width, joined = text["hidden_size"], 4 * vision["hidden_size"]
    parts = {
        "language_model": transformers.LlamaModel(llama),
        "vision_model": transformers.SiglipVisionModel(siglip),
        "mlp1": torch.nn.Sequential(
            torch.nn.LayerNorm(joined), torch.nn.Linear(joined, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        ),
    }
    tensors = {}
    for seed, (name, part) in enumerate(parts.items()):
        randomise(part, 1.0, seed)
        tensors |= {f"model.{name}.{inner}": tensor for inner, tensor in part.state_dict().items()}
    # transformers 4, by which it is published, has one more level there.
    level = "vision_model.vision_model."
    tensors = {
        name if level in name else name.replace("vision_model.", level, 1): tensor for name, tensor in tensors.items()
    }
    tensors["score.weight"] = torch.randn(1, width, generator=torch.Generator().manual_seed(11)) * 0.25
    dtype = getattr(torch, storage.dtype)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    entries = {
        "architectures": ["LlamaNemotronVLForSequenceClassification"], "model_type": "llama_nemotron_vl_rerank",
        "auto_map": {"AutoModel": "modeling_llama_nemotron_vl.LlamaNemotronVLForSequenceClassification"},
        "llm_config": llama.to_dict() | {
            "architectures": ["LlamaBidirectionalForSequenceClassification"], "model_type": "llama_bidirec"
        },
        "vision_config": siglip.to_dict(), "downsample_ratio": 0.5, "dynamic_image_size": True,
        "force_image_size": vision["image_size"],
        "id2label": {"0": "LABEL_0"}, "img_context_token_id": 151671, "pooling": "avg", "prompt_template": "v1",
        "select_layer": -1, "temperature": 1.0, "use_thumbnail": True, "max_input_tiles": 4, "p_max_length": 10240,
        "q_max_length": 512, "template": "bidirectional-llama-retriever", "torch_dtype": storage.dtype,
    } | own  # fmt: skip
    (folder / "config.json").write_text(json.dumps(entries, indent=2))
