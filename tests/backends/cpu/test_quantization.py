"""Which linear layers stay in the model's dtype where the others are in 8 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rerankd.backends.cpu import backend
from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.post_norm import PostNormLayer
from rerankd.backends.cpu.pre_norm import PreNormLayer
from tests.backends.dense import RandomWeights
from tests.backends.test_transformers import BERT, QWEN, VISION


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> CpuBackend:
    """A backend whose linear layers are the name of their quantisation."""
    monkeypatch.setattr(backend, "_linear", lambda quantization, *rest: lambda weight, bias: quantization)
    return CpuBackend(torch.float32, "int8")


def quantized(layer: PostNormLayer | PreNormLayer) -> set[str]:
    return {name for name, value in vars(layer).items() if value == "int8"}


def layers(marked: CpuBackend, spec: Any) -> list[Any]:
    transformer: Any = marked.transformer(spec, RandomWeights(spec, positioned=spec is BERT))
    return list(transformer.layers)


def test_in_an_encoder_attention_and_the_first_layer_stay_unquantised(marked: CpuBackend) -> None:
    first, *rest = layers(marked, BERT)
    assert quantized(first) == set()
    assert rest
    assert all(quantized(layer) == {"query", "up", "down"} for layer in rest)


def test_in_a_decoder_keys_and_values_stay_unquantised(marked: CpuBackend) -> None:
    assert all(quantized(layer) == {"query", "out", "up", "down"} for layer in layers(marked, QWEN))


def test_of_a_vision_tower_all_is_quantised(marked: CpuBackend) -> None:
    assert all(quantized(layer) == {"query", "key_value", "out", "up", "down"} for layer in layers(marked, VISION))
