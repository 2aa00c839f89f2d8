"""Tensor parallelism: the part of every layer that a process computes (Shoeybi et al., 2019).

The linear layers that read hidden states are split by outputs: queries, keys and values by heads, the first of an MLP
by its inner width. The linear layers that write hidden states are split by inputs, in the same way, so that the outputs
of all processes sum up to the output of the layer. Every process has all norms and embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rerankd.layers.spec import LayerSpec, TransformerSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `rank` of `size`, from 0 on."""

    rank: int = 0
    size: int = 1

    def lacks(self, spec: TransformerSpec) -> str | None:
        """None, or the feature that cannot be split: words that complete "the backend does not support ..."."""
        for layer in spec.layers:
            kv_heads = layer.kv_heads or layer.heads
            if layer.heads % self.size:
                return f"{layer.heads} heads in {self.size} equal parts"
            if kv_heads % self.size and self.size % kv_heads:
                return f"{kv_heads} heads of keys in {self.size} equal parts"
            if layer.mlp % self.size:
                return f"an MLP of width {layer.mlp} in {self.size} equal parts"
        return None

    def layer(self, spec: LayerSpec) -> LayerSpec:
        """The specification of this part of a layer."""
        if self.size == 1:
            return spec
        kv_heads = self.kv_heads(spec)
        return replace(
            spec,
            heads=spec.heads // self.size,
            kv_heads=kv_heads.stop - kv_heads.start,
            mlp=spec.mlp // self.size,
            scale=spec.softmax_scale,
        )

    def heads(self, spec: LayerSpec) -> slice:
        """The query heads of this part."""
        return self._part(spec.heads)

    def kv_heads(self, spec: LayerSpec) -> slice:
        """The key and value heads of this part. If there are fewer heads than parts, several parts share a head."""
        kv_heads = spec.kv_heads or spec.heads
        if kv_heads >= self.size:
            return self._part(kv_heads)
        head = self.rank * kv_heads // self.size
        return slice(head, head + 1)

    def mlp(self, spec: LayerSpec) -> slice:
        """The inner values of the MLP in this part."""
        return self._part(spec.mlp)

    def of_heads(self, values: Sequence[T], spec: LayerSpec) -> tuple[T, ...]:
        """The values of this part, of one value for each head."""
        return tuple(values[self.heads(spec)])

    def _part(self, count: int) -> slice:
        part_size = count // self.size
        return slice(self.rank * part_size, (self.rank + 1) * part_size)


WHOLE = Shard()
