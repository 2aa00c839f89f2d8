"""The post-norm bidirectional transformer layer of BERT (Devlin et al., 2018), shared by BERT and RoBERTa kin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rerankd.layers.attention import AttentionLayout
from rerankd.layers.linear import Linear, Nonlinearity
from rerankd.layers.norm import LayerNorm, States
from rerankd.layers.rows import columns
from rerankd.layers.runtime import Runtime


@dataclass(frozen=True)
class EncoderLayer:
    """Self-attention, add and norm, GELU feed-forward, add and norm.

    Between layers and norms rows are float32, so that in bfloat16 only what goes into a product is rounded.
    `mlp` is the feed-forward's width.
    """

    runtime: Runtime
    heads: int
    query: Linear
    key_value: Linear
    attention_out: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    mlp: int
    out_norm: LayerNorm
    gelu: Nonlinearity

    @property
    def parts(self) -> tuple[Linear | LayerNorm, ...]:
        maps = self.query, self.key_value, self.attention_out, self.up, self.down
        return *maps, self.attention_norm, self.out_norm

    def __call__(self, x: States, layout: AttentionLayout, keep: Tensor | None = None) -> States:
        """x: [T, hidden], which is written over. Returns it, or only the rows `keep` (int64) of it, which `layout` then
        has for its queries."""
        out = x if keep is None else x.chosen(keep, self.runtime)
        hidden = x.exact.shape[-1]
        keys_values = self.runtime.room(len(x), 2 * hidden)
        for rows in self.runtime.chunks(len(x), self.mlp):
            self.key_value(x.rounded[rows], out=keys_values[rows])
        queries = self.runtime.room(len(out), hidden)
        for rows in self.runtime.chunks(len(out), self.mlp):
            self.query(out.rounded[rows], out=queries[rows])
        keys, values = columns(keys_values, slice(hidden)), columns(keys_values, slice(hidden, 2 * hidden))
        attended = self.runtime.attend(queries, keys, values, hidden // self.heads, layout)
        for rows in self.runtime.chunks(len(out), self.mlp):
            inner = out.part(rows)
            delta = self.runtime.room(len(inner), hidden)
            self.attention_norm.of_sum(inner.exact, self.attention_out(attended[rows], out=delta), inner)
            self.out_norm.of_sum(inner.exact, self.down(self.up.then(inner.rounded, self.gelu), out=delta), inner)
        return out
