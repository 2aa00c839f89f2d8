"""Which maps of an encoder stay in the model's dtype where the others are in 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rerankd.engine.device import place
from rerankd.models.bert import Encoder
from rerankd.models.config import read_config
from rerankd.models.weights import Checkpoint, Weights


def test_what_attention_hands_on_and_the_first_layer_stay_exact(xlmr_checkpoint: Path) -> None:
    marked: Any = {"linear": lambda weight, bias: "int8", "exact_linear": lambda weight, bias: "exact"}
    runtime = replace(place("cpu", "float32").runtime, **marked)
    weights = Weights(Checkpoint(xlmr_checkpoint), runtime, "roberta.")
    encoder = Encoder(read_config(xlmr_checkpoint, {}), weights, 2)
    assert len(encoder.layers) > 1
    for layer in encoder.layers:
        assert layer.key_value == layer.attention_out == "exact"
    for maps in ([layer.query, layer.up, layer.down] for layer in encoder.layers[1:]):
        assert maps == ["int8"] * 3
    first = encoder.layers[0]
    assert first.query == first.up == first.down == "exact"
