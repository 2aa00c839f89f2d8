"""The parts of a layer are found wherever the layer holds them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from rerankd.backends.cpu.backend import CpuBackend
from rerankd.backends.cpu.linear import DenseLinear, Linear
from rerankd.backends.cpu.norm import LayerNorm, RMSNorm
from rerankd.backends.cpu.parts import parts_of
from rerankd.backends.cpu.runtime import Runtime


def linear() -> DenseLinear:
    return DenseLinear(torch.eye(32), None)


@dataclass(frozen=True, slots=True)
class Inner:
    norm: RMSNorm
    linears: tuple[Linear, ...]


@dataclass
class Layer:
    runtime: Runtime
    up: Linear
    norms: dict[str, LayerNorm]
    inner: Inner
    again: Linear
    name: str = "gelu"
    widths: tuple[int, ...] = (1, 2)
    more: Any = field(default=None)


@pytest.fixture
def layer() -> Layer:
    up, norm = linear(), LayerNorm(torch.ones(32), torch.zeros(32), 1e-5)
    inner = Inner(RMSNorm(torch.ones(32), 1e-6), (linear(), linear()))
    return Layer(CpuBackend(torch.float32).runtime, up, {"out": norm}, inner, again=up)


def test_every_linear_layer_and_norm_is_found_once(layer: Layer) -> None:
    expected = [layer.up, layer.norms["out"], layer.inner.norm, *layer.inner.linears]
    assert [id(part) for part in parts_of(layer)] == [id(part) for part in expected]


def test_a_layer_that_refers_to_itself_is_walked_once(layer: Layer) -> None:
    layer.more = [layer, {"self": layer}, linear()]
    assert len(list(parts_of(layer))) == 6


def test_a_part_within_a_part_is_found(layer: Layer) -> None:
    class Scaled:
        kernels = None

        def __init__(self) -> None:
            self.inner = linear()
            self.read = lambda x: x

    layer.more = Scaled()
    assert [*parts_of(layer)][-2:] == [layer.more, layer.more.inner]


@pytest.mark.parametrize("function", [torch.tanh, lambda x: x, linear().project, torch.nn.ReLU])
def test_a_function_of_which_nobody_knows_is_refused(layer: Layer, function: object) -> None:
    with pytest.raises(TypeError, match=r"Layer\.more\['act'\] is a function"):
        list(parts_of(replace(layer, more={"act": function})))
