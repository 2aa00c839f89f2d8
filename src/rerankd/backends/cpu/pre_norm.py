"""The layer of decoders and vision towers, x = x + f(norm(x)), in micro-batches and row tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.micro_batches import MicroBatch
from rerankd.backends.cpu.norm import NormRope, RowNorm
from rerankd.backends.cpu.rows import Rows, columns
from rerankd.backends.cpu.runtime import Runtime
from rerankd.layers.rotary import Rotation
from rerankd.layers.spec import LayerSpec


@dataclass(frozen=True)
class PreNormLayer:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    spec: LayerSpec
    runtime: Runtime
    query: Linear
    key_value: Linear
    out: Linear
    up: Linear
    down: Linear
    query_norm_rope: NormRope
    key_norm_rope: NormRope
    attention_norm: RowNorm
    mlp_norm: RowNorm

    def __call__(
        self, x: Rows, rotation: Rotation | None, batches: Sequence[MicroBatch], keep: Tensor | None = None
    ) -> Rows:
        """x [T, hidden], computed in place; or a copy of its rows `keep` (int64), the queries of `batches`."""
        spec, runtime = self.spec, self.runtime
        kv = spec.kv_width
        keys_values = runtime.empty_rows(max(batch.key_count for batch in batches), 2 * kv, kv)
        keys, values = columns(keys_values, slice(kv)), columns(keys_values, slice(kv, 2 * kv))
        queries = runtime.empty_rows(max(batch.layout.query_rows for batch in batches), spec.query_width)
        out = x if keep is None else runtime.index_select(x, keep)
        for batch in batches:
            batch_queries = queries[slice(batch.layout.query_rows)]
            for rows, in_batch in runtime.row_tiles_of(batch.keys, spec.mlp):
                new = slice(batch.kept + in_batch.start, batch.kept + in_batch.stop)
                row_rotation = rotation and rotation.rows(rows)
                normed = self.attention_norm.rows(x[rows])
                self.key_value(normed, out=keys_values[new])
                self.key_norm_rope(keys[new], row_rotation, out=keys[new])
                if keep is None:
                    self.query_norm_rope.project(self.query, normed, row_rotation, out=queries[in_batch])
            if keep is not None:
                row_rotation = rotation and rotation.rows(keep[batch.queries])
                normed = self.attention_norm.rows(out[batch.queries])
                self.query_norm_rope.project(self.query, normed, row_rotation, out=batch_queries)
            attended = runtime.attend(batch_queries, keys, values, spec, batch.layout)
            for rows, in_batch in runtime.row_tiles_of(batch.queries, spec.mlp):
                inner = self.out.with_residual(attended[in_batch], out[rows], out=out[rows])
                normed = self.mlp_norm.rows(inner)
                activated = (
                    self.up.with_gate(normed) if spec.gated else self.up.with_activation(normed, spec.activation)
                )
                self.down.with_residual(activated, inner, out=inner)
        return out
