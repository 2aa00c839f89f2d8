"""Which maps of an encoder stay in the model's dtype where the others are in 8 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd.engine.device import place
from rerankd.models.bert import Encoder
from rerankd.models.config import read_config
from rerankd.models.weights import Checkpoint, Weights


class Deep(Weights):
    """A checkpoint of few layers as one of many: layer i is read as layer i % 3."""

    def scope(self, name: str) -> Weights:
        start, _, number = name.rpartition("layer.")
        return super().scope(f"{start}layer.{int(number) % 3}" if start else name)


@pytest.mark.parametrize(("layers", "exact"), [(3, 1), (12, 1), (24, 2)])
def test_the_layers_that_all_others_build_on_stay_exact(xlmr_checkpoint: Path, layers: int, exact: int) -> None:
    marked: Any = {"linear": lambda weight, bias: "int8", "exact_linear": lambda weight, bias: "exact"}
    runtime = replace(place("cpu", "float32").runtime, **marked)
    config = read_config(xlmr_checkpoint, {"num_hidden_layers": layers})
    encoder = Encoder(config, Deep(Checkpoint(xlmr_checkpoint), runtime, "roberta."), 2)
    assert [layer.up for layer in encoder.layers] == ["exact"] * exact + ["int8"] * (layers - exact)
    for layer in encoder.layers:
        assert layer.attention_out == layer.down == layer.up
        assert layer.query == layer.key_value == "exact"
