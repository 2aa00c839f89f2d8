"""The bidirectional layer of BERT (Devlin et al., 2018), x = norm(x + f(x)), in row tiles."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.norm import LayerNorm, States
from rerankd.backends.cpu.rows import columns
from rerankd.backends.cpu.runtime import Runtime
from rerankd.layers.layout import AttentionLayout
from rerankd.layers.spec import LayerSpec


@dataclass(frozen=True)
class PostNormLayer:
    """Self-attention, add and norm, MLP, add and norm.

    Between layers and norms rows are float32, so that in bfloat16 only the input of a GEMM is rounded.
    """

    spec: LayerSpec
    runtime: Runtime
    query: Linear
    key_value: Linear
    attention_out: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    out_norm: LayerNorm

    def __call__(self, x: States, layout: AttentionLayout, keep: Tensor | None = None) -> States:
        """x: [T, hidden], which is written over. Returns it, or only the rows `keep` (int64) of it, which `layout` then
        has for its queries."""
        spec, runtime = self.spec, self.runtime
        out = x if keep is None else x.chosen(keep, runtime)
        keys_values = runtime.room(len(x), 2 * spec.kv_width, spec.kv_width)
        for rows in runtime.chunks(len(x), spec.mlp):
            self.key_value(x.rounded[rows], out=keys_values[rows])
        queries = runtime.room(len(out), spec.query_width)
        for rows in runtime.chunks(len(out), spec.mlp):
            self.query(out.rounded[rows], out=queries[rows])
        keys = columns(keys_values, slice(spec.kv_width))
        values = columns(keys_values, slice(spec.kv_width, 2 * spec.kv_width))
        attended = runtime.attend(queries, keys, values, spec, layout)
        for rows in runtime.chunks(len(out), spec.mlp):
            inner = out.part(rows)
            delta = runtime.room(len(inner), spec.hidden)
            self.attention_norm.of_sum(inner.exact, self.attention_out(attended[rows], out=delta), inner)
            activated = self.up.then(inner.rounded, spec.activation)
            self.out_norm.of_sum(inner.exact, self.down(activated, out=delta), inner)
        return out
