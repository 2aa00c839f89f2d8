"""The layers of a transformer, which kernels compute from recorded operations where they compute all of each layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Generic, TypeVar

import numpy
from numpy.typing import NDArray
from torch import Tensor

from rerankd.backends.cpu.parts import parts_of
from rerankd.backends.cpu.post_norm import PostNormLayer
from rerankd.backends.cpu.pre_norm import PreNormLayer
from rerankd.backends.cpu.runtime import LayerPart, Runtime

L = TypeVar("L", bound=PostNormLayer | PreNormLayer)


@dataclass(frozen=True, slots=True)
class _Run(Generic[L]):
    """Successive layers whose operations differ in nothing but the addresses of weights.

    first: the number of the first layer
    weights: int64 [layers, n], see `Kernels.repeated`
    """

    first: int
    layers: Sequence[L]
    weights: NDArray[numpy.int64]


class Layers(Generic[L]):
    """All layers but the last one, of which a batch may want only some rows.

    Of successive layers that differ in nothing but their weights, the operations of the first one are recorded. Those
    of the others are copies with other addresses: recording a layer takes Python about as long as it takes two cores to
    compute it for one short document.

    recorded: `Runtime.recorded` for all layers
    """

    def __init__(self, layers: Sequence[L], runtime: Runtime) -> None:
        parts = [tuple(parts_of(layer)) for layer in layers]
        self.recorded = runtime.recorded(layers[0].spec.head_dim, *chain.from_iterable(parts))
        self._kernels = None if self.recorded is nullcontext else runtime.kernels
        self._layers: Sequence[L] = layers[:-1]
        self._runs: Sequence[_Run[L]] = [] if self._kernels is None else list(_runs(layers[:-1], parts))

    def through(self, compute: Callable[[L], object], first: int = 0) -> None:
        """Compute the layers from number `first` on, in the scope of `recorded`.

        compute: computes one layer in place, by operations that refer to nothing of the layer but its weights
        """
        if self._kernels is None:
            for layer in self._layers[first:]:
                compute(layer)
            return
        for run in self._runs:
            before = max(first - run.first, 0)
            if before < len(run.layers):
                with self._kernels.repeated(run.weights[before:]):
                    compute(run.layers[before])


def _runs(layers: Sequence[L], parts: Sequence[Sequence[LayerPart]]) -> Iterator[_Run[L]]:
    for _, members in groupby(range(len(layers)), lambda i: _form(layers[i], parts[i])):
        numbers = list(members)
        # An address of each layer, for the same weight.
        columns = list(dict.fromkeys(zip(*(_addresses(parts[i]) for i in numbers), strict=True)))
        weights = numpy.array(columns, dtype=numpy.int64).reshape(len(columns), len(numbers)).T
        if all(len(set(row)) == len(columns) for row in weights.tolist()):
            yield _Run(numbers[0], layers[numbers[0] : numbers[-1] + 1], weights)
        else:  # two weights of a layer are one tensor, and of another layer they are two
            for i in numbers:
                yield _Run(i, layers[i : i + 1], weights[:0])


def _form(layer: L, parts: Sequence[LayerPart]) -> Hashable:
    """Equal for layers whose operations differ in nothing but the addresses of weights."""

    def shape(weight: Tensor | None) -> Hashable:
        return weight if weight is None else (weight.dtype, weight.shape)

    return layer.spec, tuple((type(part), tuple(map(shape, part.weights))) for part in parts)


def _addresses(parts: Sequence[LayerPart]) -> list[int]:
    return [weight.data_ptr() for part in parts for weight in part.weights if weight is not None]
