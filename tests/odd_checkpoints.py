"""The smallest checkpoints that have every entry of their configurations; no tokenizer belongs to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers

from tests import checkpoints
from tests.checkpoints import Storage
from tests.visual_checkpoints import write_jina_m0, write_nemotron_vl

TOKENS = {
    "no": 5, "yes": 9, "maybe": 12, "<|image_pad|>": 20, "<|video_pad|>": 21,
    "<IMG_CONTEXT>": 22, "<|begin_of_text|>": 1,
}  # fmt: skip
WORDS = 300
DECODER = {**checkpoints.QWEN3_SIZES["tiny"], "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "deepstack_visual_indexes": [0],
    "patch_size": 4,
    "num_position_embeddings": 16,
    "out_hidden_size": 32,
}
QWEN2_VISION = {
    "depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "hidden_size": 32, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
SIGLIP = {**ENCODER, "image_size": 16, "patch_size": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
POOLING = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def qwen3(folder: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=WORDS, max_position_embeddings=512, rope_parameters=dict(ROPE), tie_word_embeddings=False, **DECODER
    )
    save(transformers.Qwen3ForCausalLM(config), folder)


def qwen3_classifier(folder: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=WORDS, max_position_embeddings=512, rope_parameters=dict(ROPE), num_labels=1, **DECODER
    )
    save(transformers.Qwen3ForSequenceClassification(config), folder)


def qwen3_vl(folder: Path) -> None:
    rope = ROPE | {"mrope_section": [8, 4, 4]}
    text = {"vocab_size": WORDS, "max_position_embeddings": 512, "rope_parameters": rope, **DECODER}
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config=dict(VISION), image_token_id=20, video_token_id=21, tie_word_embeddings=True
    )
    save(transformers.Qwen3VLForConditionalGeneration(config), folder)


def bert(folder: Path) -> None:
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=64, num_labels=1, **ENCODER)
    save(transformers.BertForSequenceClassification(config), folder)


def xlmr(folder: Path) -> None:
    config = transformers.XLMRobertaConfig(
        vocab_size=WORDS, max_position_embeddings=66, type_vocab_size=1, num_labels=2, pad_token_id=1, **ENCODER
    )
    save(transformers.XLMRobertaForSequenceClassification(config), folder)


def embedder(folder: Path) -> None:
    config = transformers.XLMRobertaConfig(
        vocab_size=WORDS, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, **ENCODER
    )
    save(transformers.XLMRobertaModel(config), folder)
    (folder / "modules.json").write_text(json.dumps(POOLING))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')


def jina_m0(folder: Path) -> None:
    rope = ROPE | {"mrope_section": [2, 1, 1]}
    text = {"vocab_size": WORDS, "max_position_embeddings": 512, "rope_parameters": rope, **DECODER}
    del text["head_dim"]  # Its heads share the width of the model.
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=dict(QWEN2_VISION), image_token_id=20)
    write_jina_m0(folder, config, "saved", Storage())


def nemotron_vl(folder: Path) -> None:
    text = {"vocab_size": WORDS, "max_position_embeddings": 512, "rope_parameters": dict(ROPE), **DECODER}
    write_nemotron_vl(folder, text, SIGLIP, img_context_token_id=22)


MAKERS: Mapping[str, Callable[[Path], None]] = {
    maker.__name__: maker for maker in (qwen3, qwen3_classifier, qwen3_vl, jina_m0, nemotron_vl, bert, xlmr, embedder)
}
VISUAL = {"qwen3_vl": 20, "jina_m0": 20, "nemotron_vl": 22}
"""The token in whose place an image is seen."""
APART = ("nemotron_vl", "bert", "xlmr")
"""Whose pairs share no prefix."""


def save(model: Any, folder: Path) -> None:
    checkpoints.randomise(model, 1.0)
    model.save_pretrained(folder)
