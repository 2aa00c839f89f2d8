"""Transformer layers as plain tensors: each step is one call of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.ranks import Ranks
from rerankd.backends.torch.attention import Attention, alibi_slopes
from rerankd.backends.torch.disentangled import bucketed_attention, disentangled_attention
from rerankd.layers.layout import AttentionLayout, kept_layout
from rerankd.layers.relative import Buckets, Disentangled
from rerankd.layers.rotary import Rotary, Rotation, rotate
from rerankd.layers.spec import (
    Activation,
    Affine,
    EmbeddingWeights,
    LayerSpec,
    LayerWeights,
    Norm,
    TransformerSpec,
    TransformerWeights,
)
from rerankd.layers.transformer import Additions, Tokens


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. States are in the dtype of the weights; in a "post" layer float32, so that only the input of a linear
    layer is rounded.

    spec: the specification of the part of the layer that this process computes; the parts of all `ranks` are summed
    """

    spec: LayerSpec
    weights: LayerWeights
    attention: Attention
    slopes: tuple[float, ...]
    ranks: Ranks

    def __call__(self, x: Tensor, layout: AttentionLayout, rotation: Rotation | None, keep: Tensor | None) -> Tensor:
        """x: [T, hidden]. Returns the same, or the rows `keep` (int64) of it, which `layout` then has for queries."""
        spec, weights = self.spec, self.weights
        dtype = weights.query.weight.dtype
        out = x if keep is None else x[keep]
        if spec.placement == "post":
            attended = self._attend(x.to(dtype), out.to(dtype), layout, rotation, keep)
            out = norm(out + attended, spec.norm, weights.attention_norm)
            return norm(out + self._mlp(out.to(dtype)), spec.norm, weights.mlp_norm)
        normed = x if weights.attention_norm is None else norm(x, spec.norm, weights.attention_norm)
        attended = self._attend(normed, normed if keep is None else normed[keep], layout, rotation, keep)
        if spec.output_norms:
            out = out + norm(attended, spec.norm, weights.attention_output_norm)
            inner = self._mlp(norm(out, spec.norm, weights.mlp_norm))
            return out + norm(inner, spec.norm, weights.mlp_output_norm)
        out = out + attended
        return out + self._mlp(norm(out, spec.norm, weights.mlp_norm))

    def _attend(
        self, x: Tensor, query_states: Tensor, layout: AttentionLayout, rotation: Rotation | None, keep: Tensor | None
    ) -> Tensor:
        spec, weights = self.spec, self.weights
        keys, values = (
            part.view(len(x), -1, spec.head_dim) for part in F.linear(x, *weights.key_value).chunk(2, dim=1)
        )
        queries = F.linear(query_states, *weights.query).view(len(query_states), -1, spec.head_dim)
        if spec.qk_norm is not None:
            queries = norm(queries, spec.qk_norm, weights.query_norm)
            keys = norm(keys, spec.qk_norm, weights.key_norm)
        if rotation is not None:
            queries = rotated(queries, rotation if keep is None else rotation.rows(keep))
            keys = rotated(keys, rotation)
        if isinstance(spec.attention_bias, Disentangled):
            assert weights.relative is not None, "disentangled attention has tables"
            attended = disentangled_attention(
                queries, keys, values, layout, spec.softmax_scale, spec.attention_bias, weights.relative, spec.window
            )
        elif isinstance(spec.attention_bias, Buckets):
            assert weights.relative is not None, "biases have a table"
            assert weights.relative.biases is not None, "biases have a table"
            attended = bucketed_attention(
                queries, keys, values, layout, spec.softmax_scale, spec.attention_bias, weights.relative.biases
            )
        else:
            attended = self.attention(queries, keys, values, layout, spec.softmax_scale, spec.window, self.slopes)
        return self.ranks.sum(F.linear(attended, *weights.out))

    def _mlp(self, x: Tensor) -> Tensor:
        inner = F.linear(x, *self.weights.up)
        if self.spec.gated:
            gate, inner = inner.chunk(2, dim=1)
            inner = activate(gate, self.spec.activation) * inner
        else:
            inner = activate(inner, self.spec.activation)
        return self.ranks.sum(F.linear(inner, *self.weights.down))


class TorchTransformer:
    """A `Transformer` of plain tensors."""

    def __init__(
        self,
        spec: TransformerSpec,
        weights: TransformerWeights,
        attention: Attention,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        shard = ranks.shard
        self.spec = spec
        self.dtype = dtype
        self.embedding = weights.embedding
        self.final_norm = weights.final_norm
        self.layers = [
            Layer(
                spec=shard.layer(layer),
                weights=_in_dtype(layer_weights, torch.float32 if layer.placement == "post" else dtype, dtype),
                attention=attention,
                slopes=shard.of_heads(alibi_slopes(layer.heads), layer) if layer.attention_bias == "alibi" else (),
                ranks=ranks,
            )
            for layer, layer_weights in zip(spec.layers, weights.layers(), strict=True)
        ]

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Transformer.embed`."""
        assert self.embedding is not None, "this transformer has no embedding"
        return embed(tokens, self.embedding, self.spec).to(self.dtype)

    def __call__(
        self,
        x: Tokens | Tensor,
        layout: AttentionLayout,
        positions: Tensor | None = None,
        keep: Sequence[int] | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """See `Transformer`."""
        if isinstance(x, Tokens):
            assert self.embedding is not None, "this transformer has no embedding"
            x = embed(x, self.embedding, self.spec)
        states = x.to(torch.float32 if self.spec.layers[0].placement == "post" else self.dtype)
        rotations = rotations_of(self.spec, positions, self.dtype)
        for i, layer in enumerate(self.layers):
            rotation = rotations.get(layer.spec.rotary)
            if keep is not None and i == len(self.layers) - 1:
                rows = torch.tensor(keep, dtype=torch.int64, device=states.device)
                states = layer(states, kept_layout(layout, keep), rotation, rows)
            else:
                states = layer(states, layout, rotation, None)
            if additions is not None and i < len(additions.features):
                states = states.index_add(0, additions.rows, additions.features[i].to(states.dtype))
        if self.spec.final_norm is None:
            return states.float()
        return norm(states.float(), self.spec.final_norm, self.final_norm)


def rotations_of(spec: TransformerSpec, positions: Tensor | None, dtype: torch.dtype) -> dict[Rotary | None, Rotation]:
    """The angles of each rotary embedding of the layers."""
    rotaries = {layer.rotary for layer in spec.layers if layer.rotary is not None}
    if positions is None:
        assert not rotaries, "rotation needs positions"
        return {}
    return {rotary: rotary.rotation(positions, dtype) for rotary in rotaries}


def embed(tokens: Tokens, weights: EmbeddingWeights, spec: TransformerSpec) -> Tensor:
    """The sum of the rows of all tables, normed if the specification says so: [T, hidden].

    Where there is more than one table, or a norm, the result is float32.
    """
    x = F.embedding(tokens.ids, weights.words)
    if spec.embedding_scale != 1.0:
        # The references round the factor to the dtype of the embedding first.
        x = x * torch.tensor(spec.embedding_scale, dtype=x.dtype).item()
    if weights.positions is not None:
        x = x.float() + F.embedding(tokens.positions, weights.positions)
    if weights.types is not None:
        types = torch.zeros_like(tokens.ids) if tokens.types is None else tokens.types
        x = x.float() + F.embedding(types, weights.types)
    if spec.embedding_norm is not None:
        x = norm(x.float(), spec.embedding_norm, weights.norm)
    return x


def norm(x: Tensor, spec: Norm, weights: Affine | None) -> Tensor:
    """x normed over its last dimension."""
    assert weights is not None, "the norm has no weights"
    weight, bias = weights
    if spec.kind == "rms":
        return F.rms_norm(x, weight.shape, weight, spec.eps)
    return F.layer_norm(x, weight.shape, weight, bias, spec.eps)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x [rows, heads, head_dim], rotated by `rotation`."""
    out = torch.empty_like(x)
    rotate(x, rotation, out)
    return out


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of x."""
    match activation:
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)


def _in_dtype(weights: LayerWeights, states: torch.dtype, dtype: torch.dtype) -> LayerWeights:
    """The weights, with each norm in the dtype of its input."""

    def to(norm: Affine | None, dtype: torch.dtype) -> Affine | None:
        return norm and Affine(norm.weight.to(dtype), None if norm.bias is None else norm.bias.to(dtype))

    mlp_norm = to(weights.mlp_norm, states)
    assert mlp_norm is not None
    return replace(
        weights,
        attention_norm=to(weights.attention_norm, states),
        mlp_norm=mlp_norm,
        query_norm=to(weights.query_norm, dtype),
        key_norm=to(weights.key_norm, dtype),
        attention_output_norm=to(weights.attention_output_norm, states),
        mlp_output_norm=to(weights.mlp_output_norm, states),
    )
