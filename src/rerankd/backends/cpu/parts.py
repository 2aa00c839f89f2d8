"""The parts of a layer, its linear layers and norms, found by introspection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import cast

import torch
from torch import Tensor

from rerankd.backends.cpu.native import Kernels
from rerankd.backends.cpu.runtime import LayerPart, Runtime

_WITHOUT_PARTS = (Tensor, Runtime, Kernels, str, bytes, int, float, type(None), torch.dtype, torch.device, Enum)
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial, type)


def parts_of(layer: object) -> Iterator[LayerPart]:
    """Every linear layer and norm of a layer once: all objects with `kernels`, in attributes, sequences and mappings.

    TypeError for a function outside of a part: it may compute with torch while operations are recorded.
    """
    return _parts(layer, type(layer).__name__, set(), False)


def _parts(value: object, name: str, seen: set[int], in_part: bool) -> Iterator[LayerPart]:
    if isinstance(value, _WITHOUT_PARTS) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, _FUNCTIONS):
        if in_part:
            return
        raise TypeError(f"{name} is a function, and nothing says whether kernels compute it. Make it a part.")
    is_part = hasattr(value, "kernels")
    if is_part:
        yield cast(LayerPart, value)
    for inner_name, inner_value in _references(value, name):
        yield from _parts(inner_value, inner_name, seen, in_part or is_part)


def _references(value: object, name: str) -> Iterator[tuple[str, object]]:
    """The names and the values of all that a value refers to."""
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, (Sequence, Set)):
        yield from ((f"{name}[{i}]", item) for i, item in enumerate(value))
    else:
        slots = (slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ()))
        attributes = [*slots, *getattr(value, "__dict__", ())]
        yield from (
            (f"{name}.{attribute}", getattr(value, attribute)) for attribute in attributes if hasattr(value, attribute)
        )
