"""The post-norm bidirectional transformer layer of BERT (Devlin et al., 2018), shared by BERT and RoBERTa kin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.attention import AttentionLayout
from rerankd.layers.linear import Linear
from rerankd.layers.norm import LayerNorm
from rerankd.layers.runtime import Runtime


@dataclass(frozen=True)
class EncoderLayer:
    """Self-attention, add and norm, GELU feed-forward, add and norm.

    Between layers and norms rows are float32, so that in bfloat16 only what goes into a product is rounded.
    `gelu` is the approximation's name as `torch.nn.functional.gelu` takes it.
    """

    runtime: Runtime
    heads: int
    query: Linear
    key_value: Linear
    attention_out: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    out_norm: LayerNorm
    gelu: str

    def __call__(self, x: Tensor, layout: AttentionLayout, keep: Tensor | None = None) -> Tensor:
        """x: float32 [T, hidden]. Returns the new x, or only the rows `keep` (int64) of it, which `layout` then
        has for its queries."""
        hidden, dtype = x.shape[-1], self.runtime.dtype
        head_dim = hidden // self.heads
        keys_values = x.new_empty(len(x), 2 * hidden, dtype=dtype)
        for rows in self.runtime.chunks(len(x)):
            keys_values[rows] = self.key_value(x[rows].to(dtype))
        keys, values = keys_values.view(len(x), 2, self.heads, head_dim).unbind(1)
        if keep is not None:
            x = x[keep]
        queries = torch.empty_like(x, dtype=dtype)
        for rows in self.runtime.chunks(len(x)):
            queries[rows] = self.query(x[rows].to(dtype))
        attended = self.runtime.attend(
            queries.view(len(x), self.heads, head_dim), keys, values, layout, head_dim**-0.5
        ).flatten(1)
        out = torch.empty_like(x)
        for rows in self.runtime.chunks(len(x)):
            attention = self.attention_norm(x[rows] + self.attention_out(attended[rows]))
            inner = F.gelu(self.up(attention.to(dtype)), approximate=self.gelu)
            out[rows] = self.out_norm(attention + self.down(inner))
        return out
