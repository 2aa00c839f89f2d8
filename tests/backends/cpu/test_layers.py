"""Layers whose operations are copies of another layer's compute what operations of their own would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankd.backends.cpu import backend
from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.layers import Layers
from rerankd.backends.cpu.native import Kernels
from rerankd.layers.spec import LayerWeights, TransformerSpec
from rerankd.layers.transformer import Additions
from tests.backends.dense import RandomWeights
from tests.backends.test_transformers import BERT, QWEN, Packed

LAYERS = 6


class Run:
    """A transformer of the CPU backend, and the number of GEMMs that Python calls for a batch."""

    def __init__(self, spec: TransformerSpec, weights: Any, dtype: torch.dtype, quantization: str | None) -> None:
        if Kernels.load(dtype) is None:
            pytest.skip("no kernels were built, or none for this processor")
        self._transformer: Any = CpuBackend(dtype, quantization).transformer(spec, weights)
        self._packed = Packed(spec.causal)
        self._positions = None if spec.layers[0].rotary is None else self._packed.tokens.positions

    def states(self, additions: Additions | None = None) -> Tensor:
        packed, keep = self._packed, [6, 7, 17, 20, 25]
        found: Tensor = self._transformer(packed.tokens, packed.layout, self._positions, keep, additions)
        return found


def one_by_one(layers: Layers[Any], compute: Callable[[Any], object], first: int = 0) -> None:
    """`Layers.through` that records the operations of each layer."""
    for layer in layers._layers[first:]:
        compute(layer)


@pytest.fixture
def gemms(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """An entry for each GEMM that Python calls."""
    calls: list[object] = []
    gemm = Kernels.gemm
    monkeypatch.setattr(Kernels, "gemm", lambda *operands: (calls.append(None), gemm(*operands)))
    return calls


def in_all_layers(spec: TransformerSpec) -> TransformerSpec:
    return replace(spec, layers=spec.layers[:1] * LAYERS)


@pytest.mark.parametrize("tile", [1 << 21, 1], ids=["one-tile", "many-tiles"])
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spec", [BERT, QWEN], ids=["bert", "qwen3"])
def test_operations_of_like_layers_are_recorded_once(
    spec: TransformerSpec,
    dtype: torch.dtype,
    quantization: str | None,
    tile: int,
    gemms: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = in_all_layers(spec)
    monkeypatch.setattr(backend, "_row_tile", lambda kernels: (tile, 8))
    run = Run(spec, RandomWeights(spec, dtype, positioned=spec.layers[0].rotary is None), dtype, quantization)
    found = run.states()
    called = len(gemms)
    monkeypatch.setattr(Layers, "through", one_by_one)
    assert torch.equal(run.states(), found)
    assert found.std() > 0.5
    # The last layer is by itself; in 8 bits the first layer of an encoder is, too.
    assert called < (len(gemms) - called) / 1.9


def test_layers_between_which_features_are_added_have_operations_of_their_own(
    gemms: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = in_all_layers(QWEN)
    run = Run(spec, RandomWeights(spec), torch.float32, None)
    additions = Additions(torch.tensor([1, 3, 9]), [torch.ones(3, 64), torch.full((3, 64), -0.5)])
    found = run.states(additions)
    assert not torch.equal(found, run.states())
    gemms.clear()
    run.states(additions)
    # Of five operations: two layers before features, one for the three behind them, and the last one.
    assert len(gemms) == 4 * 5
    monkeypatch.setattr(Layers, "through", one_by_one)
    assert torch.equal(run.states(additions), found)


@dataclass(frozen=True)
class Changed:
    """Random weights whose layers are changed."""

    weights: RandomWeights
    change: Callable[[int, LayerWeights], LayerWeights]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.weights, name)

    def layers(self) -> Iterable[LayerWeights]:
        return (self.change(i, layer) for i, layer in enumerate(self.weights.layers()))


def shared_in_the_third(i: int, layer: LayerWeights) -> LayerWeights:
    return replace(layer, mlp_norm=layer.attention_norm) if i == 2 else layer


def shared_in_the_first(i: int, layer: LayerWeights) -> LayerWeights:
    """One tensor for two norms of the first layer, which of the other layers are two."""
    return replace(layer, mlp_norm=layer.attention_norm) if i == 0 else layer


def shared_in_all(i: int, layer: LayerWeights) -> LayerWeights:
    return replace(layer, mlp_norm=layer.attention_norm)


def without_bias_in_the_third(i: int, layer: LayerWeights) -> LayerWeights:
    return replace(layer, up=layer.up._replace(bias=None)) if i == 2 else layer


def another_activation(i: int, spec: Any) -> Any:
    return replace(spec, activation="gelu_tanh") if i == 1 else spec


@pytest.mark.parametrize(
    ("change", "recorded"),
    [(shared_in_the_first, LAYERS), (shared_in_the_third, LAYERS), (shared_in_all, 2), (without_bias_in_the_third, 4)],
)
def test_layers_that_differ_in_more_than_addresses_have_operations_of_their_own(
    change: Callable[[int, LayerWeights], LayerWeights],
    recorded: int,
    gemms: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = in_all_layers(BERT)
    run = Run(spec, Changed(RandomWeights(spec, positioned=True), change), torch.float32, None)
    found = run.states()
    assert len(gemms) == recorded * 5
    monkeypatch.setattr(Layers, "through", one_by_one)
    assert torch.equal(run.states(), found)


def test_layers_of_another_specification_have_operations_of_their_own(
    gemms: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = tuple(another_activation(i, layer) for i, layer in enumerate(in_all_layers(BERT).layers))
    spec = replace(BERT, layers=layers)
    run = Run(spec, RandomWeights(spec, positioned=True), torch.float32, None)
    found = run.states()
    assert len(gemms) == 4 * 5
    monkeypatch.setattr(Layers, "through", one_by_one)
    assert torch.equal(run.states(), found)
