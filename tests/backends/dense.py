"""Transformers written out from their definition: each sequence by itself, in float64, without packing or sharing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.layers.relative import Disentangled
from rerankd.layers.spec import (
    Affine,
    EmbeddingWeights,
    LayerSpec,
    LayerWeights,
    Norm,
    RelativeWeights,
    TransformerSpec,
)

VOCABULARY, POSITIONS = 50, 64


@dataclass(frozen=True)
class RandomWeights:
    """`TransformerWeights` of a specification, seeded, wide enough that every part of a layer shows in the result."""

    spec: TransformerSpec
    dtype: torch.dtype = torch.float32
    positioned: bool = False

    @property
    def embedding(self) -> EmbeddingWeights:
        hidden = self.spec.hidden
        tables = [draw(n, hidden, seed=1000 + n).to(self.dtype) for n in (VOCABULARY, POSITIONS, 2)]
        norm = None if self.spec.embedding_norm is None else self._norm(self.spec.embedding_norm, hidden, 1003)
        if not self.positioned:
            return EmbeddingWeights(tables[0], norm=norm)
        return EmbeddingWeights(tables[0], tables[1], tables[2], norm)

    @property
    def final_norm(self) -> Affine | None:
        norm = self.spec.final_norm
        return norm and self._norm(norm, self.spec.hidden, 1004)

    def layers(self) -> Iterable[LayerWeights]:
        for i, spec in enumerate(self.spec.layers):
            yield self._layer(spec, 100 * i)

    def _layer(self, spec: LayerSpec, seed: int) -> LayerWeights:
        qk = spec.qk_norm
        return LayerWeights(
            query=self._linear(spec.query_width, spec.hidden, spec.qkv_bias, seed + 1),
            key_value=self._linear(2 * spec.kv_width, spec.hidden, spec.qkv_bias, seed + 2),
            out=self._linear(spec.hidden, spec.query_width, spec.out_bias, seed + 3),
            up=self._linear(spec.mlp * (2 if spec.gated else 1), spec.hidden, spec.mlp_bias, seed + 4),
            down=self._linear(spec.hidden, spec.mlp, spec.mlp_bias, seed + 5),
            attention_norm=self._norm(spec.norm, spec.hidden, seed + 6) if spec.attention_norm else None,
            mlp_norm=self._norm(spec.norm, spec.hidden, seed + 7),
            query_norm=qk and self._norm(qk, spec.head_dim, seed + 8),
            key_norm=qk and self._norm(qk, spec.head_dim, seed + 9),
            relative=self._relative(spec, seed + 20),
        )

    def _relative(self, spec: LayerSpec, seed: int) -> RelativeWeights | None:
        if not isinstance(spec.attention_bias, Disentangled):
            return None
        rows = 2 * spec.attention_bias.span
        keys, queries = (draw(rows, spec.query_width, seed=seed + i).to(self.dtype) for i in range(2))
        return RelativeWeights(keys, queries)

    def _linear(self, outputs: int, inputs: int, bias: bool, seed: int) -> Affine:
        weight = (draw(outputs, inputs, seed=seed) * 1.5 / math.sqrt(inputs)).to(self.dtype)
        return Affine(weight, draw(outputs, seed=seed + 50).to(self.dtype) if bias else None)

    def _norm(self, norm: Norm, width: int, seed: int) -> Affine:
        weight = 1 + draw(width, seed=seed) / 3
        return Affine(weight, draw(width, seed=seed + 50) / 3 if norm.kind == "layer" else None)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense_states(
    spec: TransformerSpec, weights: RandomWeights, ids: list[int], types: list[int] | None = None
) -> Tensor:
    """The last states of one sequence: float64 [tokens, hidden]."""
    table = weights.embedding
    x = table.words.double()[ids] * spec.embedding_scale
    if table.positions is not None and table.types is not None:
        x = x + table.positions.double()[: len(ids)] + table.types.double()[types or [0] * len(ids)]
    if spec.embedding_norm is not None:
        x = _norm(x, spec.embedding_norm, table.norm)
    for own, layer in zip(spec.layers, weights.layers(), strict=True):
        if own.placement == "post":
            x = _norm(x + _attention(x, own, layer), own.norm, layer.attention_norm)
            x = _norm(x + _mlp(x, own, layer), own.norm, layer.mlp_norm)
        else:
            inner = x if layer.attention_norm is None else _norm(x, own.norm, layer.attention_norm)
            x = x + _attention(inner, own, layer)
            x = x + _mlp(_norm(x, own.norm, layer.mlp_norm), own, layer)
    return x if spec.final_norm is None else _norm(x, spec.final_norm, weights.final_norm)


def shapes(spec: TransformerSpec, **changes: object) -> TransformerSpec:
    """The specification with every layer changed."""
    return replace(spec, layers=tuple(replace(layer, **changes) for layer in spec.layers))


def _linear(x: Tensor, affine: Affine) -> Tensor:
    return F.linear(x, affine.weight.double(), None if affine.bias is None else affine.bias.double())


def _norm(x: Tensor, norm: Norm, affine: Affine | None) -> Tensor:
    assert affine is not None
    if norm.kind == "rms":
        return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * affine.weight
    assert affine.bias is not None
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * affine.weight + affine.bias


def _rotate(x: Tensor, spec: LayerSpec) -> Tensor:
    """x [tokens, heads, head_dim], each pair of values as a complex number times one that rotates it."""
    if spec.rotary is None:
        return x
    pairs = len(spec.rotary.frequencies)
    angles = torch.outer(torch.arange(len(x)).double(), torch.tensor(spec.rotary.frequencies).double())
    rotated = torch.complex(x[..., :pairs], x[..., pairs : 2 * pairs]) * torch.polar(
        torch.full_like(angles, spec.rotary.factor), angles
    ).unsqueeze(1)
    return torch.cat([rotated.real, rotated.imag, x[..., 2 * pairs :]], -1)


def _attention(x: Tensor, spec: LayerSpec, layer: LayerWeights) -> Tensor:
    queries = _linear(x, layer.query).unflatten(1, (spec.heads, -1))
    keys, values = (
        part.unflatten(1, (-1, spec.head_dim)) for part in _linear(x, layer.key_value).split(spec.kv_width, 1)
    )
    if spec.qk_norm is not None:
        queries, keys = _norm(queries, spec.qk_norm, layer.query_norm), _norm(keys, spec.qk_norm, layer.key_norm)
    queries, keys = _rotate(queries, spec), _rotate(keys, spec)
    heads = []
    group = spec.heads // (spec.kv_heads or spec.heads)
    for head in range(spec.heads):
        logits = queries[:, head] @ keys[:, head // group].T * (spec.scale or spec.head_dim**-0.5)
        for i in range(len(x)):
            for j in range(len(x)):
                if (spec.causal and j > i) or (spec.window is not None and abs(i - j) > spec.window):
                    logits[i, j] = float("-inf")
                elif isinstance(spec.attention_bias, Disentangled):
                    assert layer.relative is not None
                    row = _row(i - j, spec.attention_bias)
                    own = slice(head * spec.head_dim, (head + 1) * spec.head_dim)
                    scale = spec.scale or spec.head_dim**-0.5
                    for table, side in ((layer.relative.keys, queries[i]), (layer.relative.queries, keys[j])):
                        assert table is not None
                        logits[i, j] += table[row, own].double() @ side[head] * scale
                elif spec.attention_bias == "alibi":
                    assert spec.heads == 4
                    logits[i, j] -= [1 / 4, 1 / 16, 1 / 64, 1 / 256][head] * abs(i - j)
        heads.append(logits.softmax(-1) @ values[:, head // group])
    return _linear(torch.cat(heads, -1), layer.out)


def _row(distance: int, form: Disentangled) -> int:
    """Half of the rows before and behind are for one distance each, the others for ever more of them."""
    near, bucket = form.span // 2, distance
    if form.farthest is not None and abs(distance) > near:
        steps = math.ceil(math.log(abs(distance) / near) / math.log((form.farthest - 1) / near) * (near - 1))
        bucket = (near + steps) * (1 if distance > 0 else -1)
    return min(max(bucket + form.span, 0), 2 * form.span - 1)


def _mlp(x: Tensor, spec: LayerSpec, layer: LayerWeights) -> Tensor:
    def activated(y: Tensor) -> Tensor:
        match spec.activation:
            case "gelu":
                return y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
            case "gelu_tanh":
                return y * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
            case "quick_gelu":
                return y / (1 + torch.exp(-1.702 * y))
            case "silu":
                return y / (1 + torch.exp(-y))
            case "relu":
                return y.clamp(min=0)

    inner = _linear(x, layer.up)
    if spec.gated:
        gate, plain = inner.split(spec.mlp, 1)
        return _linear(activated(gate) * plain, layer.down)
    return _linear(activated(inner), layer.down)
