"""The post-norm bidirectional transformer layer of BERT (Devlin et al., 2018), shared by BERT and RoBERTa kin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rerankd.layers.attention import AttentionLayout
from rerankd.layers.linear import Linear, Nonlinearity
from rerankd.layers.norm import LayerNorm, States
from rerankd.layers.rows import part
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

    def __call__(self, x: States, layout: AttentionLayout, keep: Tensor | None = None) -> States:
        """x: [T, hidden]. Returns the new x, or only the rows `keep` (int64) of it, which `layout` then has
        for its queries."""
        hidden, dtype = x.exact.shape[-1], self.runtime.dtype
        head_dim = hidden // self.heads
        keys_values = x.exact.new_empty(len(x), 2 * hidden, dtype=dtype)
        for rows in self.runtime.chunks(len(x), self.mlp):
            self.key_value(part(x.rounded, rows), out=keys_values[rows])
        keys, values = keys_values.view(len(x), 2, self.heads, head_dim).unbind(1)
        if keep is not None:
            x = x.chosen(keep, dtype)
        queries = x.exact.new_empty(len(x), hidden, dtype=dtype)
        for rows in self.runtime.chunks(len(x), self.mlp):
            self.query(part(x.rounded, rows), out=queries[rows])
        attended = self.runtime.attend(queries.view(len(x), self.heads, head_dim), keys, values, layout, head_dim**-0.5)
        out = States.empty(len(x), hidden, self.runtime)
        for rows in self.runtime.chunks(len(x), self.mlp):
            inner = out.part(rows)
            self.attention_norm.of_sum(x.exact[rows], self.attention_out(part(attended, rows)), inner)
            self.out_norm.of_sum(inner.exact, self.down(self.up.then(inner.rounded, self.gelu)), inner)
        return out
