"""Scaled rotary embeddings against transformers' own arithmetic."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from rerankd.models.checkpoint.config import Config

CPU = torch.device("cpu")


def parameters(kind: str, random: Random) -> dict[str, Any]:
    """Rotary parameters of a kind, each of the optional ones there or not."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": random.choice([1e4, 5e5, 1e6, 12345.0])}
    if kind != "default":
        rope["factor"] = random.choice([1.0, 2.0, 4.0, 32.0, 1.7])
    if kind == "llama3":
        low = random.choice([1.0, 0.5])
        rope |= {"low_freq_factor": low, "high_freq_factor": low * random.choice([4.0, 2.5])}
    if kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = random.choice([256, 4096, 8192, 32768])
    if kind == "yarn":
        optional: dict[str, Any] = {
            "attention_factor": 0.7,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": random.choice([True, False]),
            "mscale": 0.8,
            "mscale_all_dim": random.choice([0.9, 1.3]),
        }
        rope |= {name: value for name, value in optional.items() if random.random() < 0.4}
    return rope


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn"])
def test_frequencies_and_factor_are_transformers(kind: str, head_dim: int) -> None:
    random = Random(f"{kind} {head_dim}")
    seen = set()
    for _ in range(60):
        rope = parameters(kind, random)
        entries = {"max_position_embeddings": random.choice([4096, 40960]), "head_dim": head_dim, "hidden_size": 64}
        theirs = transformers.Qwen3Config(**entries, rope_parameters=dict(rope))
        if kind == "default":
            frequencies, factor = Qwen3RotaryEmbedding.compute_default_rope_parameters(theirs)
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](theirs, CPU)
        own = Config(entries | {"rope_parameters": rope}, "config.json").rope()
        assert torch.allclose(own.frequencies(head_dim), frequencies, rtol=1e-6, atol=0)
        assert own.attention_factor == pytest.approx(factor, rel=1e-6)
        seen.add((round(float(frequencies.sum()), 4), round(factor, 4)))
    assert len(seen) >= (4 if kind in ("default", "dynamic") else 8)


def test_a_factor_multiplies_cosines_and_sines() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
    config = Config({"rope_parameters": rope, "max_position_embeddings": 1024}, "config.json")
    theirs = transformers.Qwen3Config(max_position_embeddings=1024, head_dim=32, rope_parameters=dict(rope))
    positions = torch.tensor([0, 1, 5, 255, 256, 1000])
    cos, sin = Qwen3RotaryEmbedding(theirs)(torch.zeros(1), positions[None])
    rotation = config.rope().rotary(32).rotation(positions, torch.float32)
    # A frequency's last bit counts a thousandfold at position 1,000.
    assert torch.allclose(rotation.cos[:, 0], cos[0, :, :16], atol=2e-4)
    assert torch.allclose(rotation.sin[:, 0], sin[0, :, :16], atol=2e-4)
    assert float(rotation.cos[0, 0, 0]) > 1.1
