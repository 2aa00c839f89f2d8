"""The linear layers that int8 and fp8 quantise, and those that would lose too much precision in 8 bits."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, TypeAlias

from rerankd.layers.spec import LayerSpec

LinearName: TypeAlias = Literal["query", "key_value", "out", "up", "down"]
ALL: frozenset[LinearName] = frozenset({"query", "key_value", "out", "up", "down"})


def quantized(spec: LayerSpec, index: int) -> Set[LinearName]:
    """The linear layers of layer `index` that are computed in 8 bits; the others are `Runtime.precise_linear`.

    8 bits cost the most precision in keys and values, where the error of a token reaches all others. In an encoder they
    cost much in the output of attention too, and in the first layer, on which all others build.
    """
    if spec.placement == "post":
        return frozenset() if index == 0 else ALL - {"key_value", "out"}
    return ALL - {"key_value"} if spec.causal else ALL
