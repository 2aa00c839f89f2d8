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
    """Self-attention, residual and norm, MLP, residual and norm.

    Residuals and norms are computed in float32, so that a bfloat16 model rounds only the input of GEMMs.
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
        """x [T, hidden], computed in place; or a copy of its rows `keep` (int64), the queries of `layout`."""
        spec, runtime = self.spec, self.runtime
        out = x if keep is None else x.index_select(keep, runtime)
        keys_values = runtime.empty_rows(len(x), 2 * spec.kv_width, spec.kv_width)
        for rows in runtime.row_tiles(len(x), spec.mlp):
            self.key_value(x.rounded[rows], out=keys_values[rows])
        queries = runtime.empty_rows(len(out), spec.query_width)
        for rows in runtime.row_tiles(len(out), spec.mlp):
            self.query(out.rounded[rows], out=queries[rows])
        keys = columns(keys_values, slice(spec.kv_width))
        values = columns(keys_values, slice(spec.kv_width, 2 * spec.kv_width))
        attended = runtime.attend(queries, keys, values, spec, layout)
        for rows in runtime.row_tiles(len(out), spec.mlp):
            inner = out.part(rows)
            delta = runtime.empty_rows(len(inner), spec.hidden)
            self.attention_norm.add_norm(inner.float32, self.attention_out(attended[rows], out=delta), inner)
            activated = self.up.with_activation(inner.rounded, spec.activation)
            self.out_norm.add_norm(inner.float32, self.down(activated, out=delta), inner)
        return out
