"""A weight as a checkpoint stores it, and the protocol of formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from rerankd.models.checkpoint.weights import Checkpoint

Rows: TypeAlias = Callable[[slice], Tensor]
"""Some rows of a weight, in float32."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A quantised weight.

    parts: the names of the tensors that make it
    shape: of the weight
    open: reads these tensors, and gives a function that makes rows of the weight
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    open: Callable[[], Rows]


class Scheme(Protocol):
    """A format of quantised weights, as a configuration describes it."""

    @property
    def said(self) -> str:
        """The format in words."""
        ...

    def stored(self, checkpoint: Checkpoint) -> dict[str, Stored]:
        """The quantised weights of a checkpoint by their names, such as `layers.0.mlp.up_proj.weight`."""
        ...


def modules_with(checkpoint: Checkpoint, tensor: str) -> list[str]:
    """The names of the modules that have a tensor of this name, in their order."""
    ending = f".{tensor}"
    return sorted(name.removesuffix(ending) for name in checkpoint.names if name.endswith(ending))


def parts_of(checkpoint: Checkpoint, module: str, *tensors: str) -> tuple[str, ...]:
    """The names of the `tensors` that a module has."""
    return tuple(name for tensor in tensors if (name := f"{module}.{tensor}") in checkpoint.names)
