"""Models of the sizes that people use, with random weights made where they run: no checkpoint and no tokenizer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor

from rerankd.backends.select import Placement
from rerankd.models.base import Model
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.registry import find_architecture

VOCABULARY = 32000
IMAGE, VIDEO = 5, 6
"""Placeholders of pictures and videos, which are no random text."""


@dataclass(frozen=True)
class Shape:
    """A model's name, its class in transformers, and its configuration."""

    name: str
    architecture: str
    config: Callable[[], Any]

    @property
    def longest(self) -> int:
        """Tokens of a document at most, behind a query of 95."""
        return 417 if self.architecture == BERT else 600


def qwen3(hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> Any:
    return transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=mlp, max_position_embeddings=40960,
        tie_word_embeddings=True,
    )  # fmt: skip


def roberta(hidden: int, layers: int, heads: int, mlp: int) -> Any:
    return transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=mlp, max_position_embeddings=8194, type_vocab_size=1, num_labels=1,
    )  # fmt: skip


def bert(hidden: int, layers: int, heads: int, mlp: int) -> Any:
    return transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=mlp, num_labels=1,
    )  # fmt: skip


def qwen3_vl(text: dict[str, int], vision: dict[str, Any], sections: list[int]) -> Any:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "max_position_embeddings": 262144, "rope_parameters": rope,
            "tie_word_embeddings": True, **text,
        },
        vision_config={"out_hidden_size": text["hidden_size"], "num_position_embeddings": 2304, **vision},
        image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=True,
    )  # fmt: skip


def text_config(hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": mlp,
    }  # fmt: skip


def vision_config(hidden: int, layers: int, heads: int, mlp: int, deepstack: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "depth": layers, "num_heads": heads, "intermediate_size": mlp,
        "deepstack_visual_indexes": deepstack,
    }  # fmt: skip


DECODER, ENCODER, BERT = "Qwen3ForCausalLM", "XLMRobertaForSequenceClassification", "BertForSequenceClassification"
SEEING = "Qwen3VLForConditionalGeneration"
SMALL = [
    Shape("qwen3-small", DECODER, lambda: qwen3(64, 1, 2, 1, 32, 128)),
    Shape("xlmr-small", ENCODER, lambda: roberta(64, 1, 2, 128)),
]
FULL = [
    Shape("qwen3-0.6b", DECODER, lambda: qwen3(1024, 28, 16, 8, 128, 3072)),
    Shape("bge-v2-m3", ENCODER, lambda: roberta(1024, 24, 16, 4096)),
    Shape("minilm-l6", BERT, lambda: bert(384, 6, 12, 1536)),
    Shape("qwen3-4b", DECODER, lambda: qwen3(2560, 36, 32, 8, 128, 9728)),
    Shape("qwen3-8b", DECODER, lambda: qwen3(4096, 36, 32, 8, 128, 12288)),
]
SEEING_SMALL = [
    Shape(
        "qwen3-vl-small",
        SEEING,
        lambda: qwen3_vl(text_config(64, 2, 2, 1, 32, 128), vision_config(32, 1, 2, 64, [0]), [8, 4, 4]),
    )
]
SEEING_FULL = [
    Shape(
        "qwen3-vl-8b",
        SEEING,
        lambda: qwen3_vl(
            text_config(4096, 36, 32, 8, 128, 12288), vision_config(1152, 27, 16, 4304, [8, 16, 24]), [24, 20, 20]
        ),
    ),
    Shape(
        "qwen3-vl-2b",
        SEEING,
        lambda: qwen3_vl(
            text_config(2048, 28, 16, 8, 128, 6144), vision_config(1024, 24, 16, 4096, [5, 11, 17]), [24, 20, 20]
        ),
    ),
]
"""The larger first: the reference figure is of its size."""


class RandomCheckpoint:
    """What `Checkpoint` is for a folder, for tensors drawn by their names: the same on every call."""

    folder = Path("random")

    def __init__(self, shape: Shape, device: torch.device) -> None:
        config = shape.config()
        config.architectures = [shape.architecture]
        with torch.device("meta"):
            model = getattr(transformers, shape.architecture)(config)
        self.config = Config({**config.to_dict(), "architectures": [shape.architecture]}, "random/config.json")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._shapes.pop("lm_head.weight", None)
        self._device = device

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        """Wide enough that scores spread; bfloat16, so that every dtype starts from the same numbers."""
        shape = self._shapes[name]
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(shape, generator=generator, device=self._device)
        if "norm" in name.lower() and name.endswith("weight"):
            drawn = 1 + drawn / 10
        elif len(shape) == 1:
            drawn = drawn / 10
        else:
            drawn = drawn * (0.02 if "embed" in name else 1.5 / math.sqrt(math.prod(shape[1:])))
        return drawn.to(torch.bfloat16)

    def read_part(self, name: str, rows: slice, columns: slice) -> Tensor:
        whole = self.read(name)[rows]
        return whole if columns == slice(None) else whole[:, columns]

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        return self.read(name)[list(rows)]


def load(shape: Shape, placement: Placement, seeds: torch.device | None = None) -> Model:
    """The model where it is placed. seeds: the device that draws its numbers; each kind draws its own"""
    checkpoint = RandomCheckpoint(shape, seeds or placement.device)
    _, architecture = find_architecture(checkpoint.config)
    weights = Weights(cast(Checkpoint, checkpoint), placement.device, placement.dtype)
    answers = {"no": 100, "yes": 200, "<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO}.__getitem__
    return architecture.load(checkpoint.config, weights, answers, placement, architecture.recipes[0])


def gemm_operations(shape: Shape) -> int:
    """Multiply-adds, times two, of all linear layers of the language model for one token."""
    config = shape.config()
    config = getattr(config, "text_config", config)
    hidden, mlp, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    attention = hidden * head_dim * (2 * config.num_attention_heads + 2 * kv_heads)
    gated = 3 if shape.architecture in (DECODER, SEEING) else 2
    return 2 * int(layers) * int(attention + gated * hidden * mlp)


def tower_operations(shape: Shape) -> int:
    """The same of a vision tower for one token of a picture: four patches, and each merger."""
    vision = shape.config().vision_config
    hidden, joined = vision.hidden_size, 4 * vision.hidden_size
    patches = 4 * vision.depth * (4 * hidden * hidden + 2 * hidden * vision.intermediate_size)
    mergers = (1 + len(vision.deepstack_visual_indexes)) * joined * (joined + vision.out_hidden_size)
    return 2 * int(patches + mergers)
