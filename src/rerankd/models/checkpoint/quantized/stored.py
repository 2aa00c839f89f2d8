"""A quantised weight in a checkpoint, and the protocol of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from rerankd.models.checkpoint.tensors import Checkpoint

Rows: TypeAlias = Callable[[slice], Tensor]
"""A function that dequantises some rows of a weight: float32 [rows, inputs]."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A quantised weight.

    parts: names of the stored tensors of which the weight consists
    shape: of the weight, [outputs, inputs]
    open: reads these tensors, and returns a function that dequantises rows; raises ModelError with the reason alone,
        such as `it is packed as int64`
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    open: Callable[[], Rows]


class Scheme(Protocol):
    """A format of quantised weights, as a configuration describes it."""

    @property
    def description(self) -> str:
        """The format in words, for messages."""
        ...

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """The quantised weights of a checkpoint by name, such as `layers.0.mlp.up_proj.weight`."""
        ...


def modules_with(checkpoint: Checkpoint, tensor: str) -> list[str]:
    """The names of the modules that have a tensor with this name, sorted."""
    ending = f".{tensor}"
    return sorted(name.removesuffix(ending) for name in checkpoint.names if name.endswith(ending))


def parts_of(checkpoint: Checkpoint, module: str, *tensors: str) -> tuple[str, ...]:
    """The full names of those `tensors` that a module has."""
    return tuple(name for tensor in tensors if (name := f"{module}.{tensor}") in checkpoint.names)
