"""The post-norm bidirectional transformer layer of BERT (Devlin et al., 2018), shared by BERT and RoBERTa kin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.layers.attention import AttentionLayout
from rerankd.layers.linear import Linear, Nonlinearity
from rerankd.layers.norm import LayerNorm, States
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
        hidden, dtype, device = x.exact.shape[-1], self.runtime.dtype, self.runtime.device
        head_dim = hidden // self.heads
        keys_values = x.rounded.new_empty(len(x), 2 * hidden)
        for rows in self.runtime.chunks(len(x), self.mlp):
            self.key_value(x.rounded[rows], out=keys_values[rows])
        keys, values = keys_values.view(len(x), 2, self.heads, head_dim).unbind(1)
        if keep is not None:
            x = x.rows(keep)
        queries = torch.empty_like(x.rounded)
        for rows in self.runtime.chunks(len(x), self.mlp):
            self.query(x.rounded[rows], out=queries[rows])
        attended = self.runtime.attend(
            queries.view(len(x), self.heads, head_dim), keys, values, layout, head_dim**-0.5
        ).flatten(1)
        out = States.empty(len(x), hidden, dtype, device)
        for rows in self.runtime.chunks(len(x), self.mlp):
            inner = out.rows(rows)
            self.attention_norm.of_sum(x.exact[rows], self.attention_out(attended[rows]), inner)
            self.out_norm.of_sum(inner.exact, self.down(self.up(inner.rounded, self.gelu)), inner)
        return out
