"""Where the tensors of a stack of layers stand in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from rerankd.layers.spec import Affine, EmbeddingWeights, LayerSpec, LayerWeights, RelativeWeights, TransformerSpec
from rerankd.models.checkpoint.weights import Weights


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of a layer's tensors below its own prefix, without `.weight` and `.bias`.

    layer: the prefix of layer 0, 1, ..., with `{}` for the number
    qkv: the linear layers of query, key and value, or one that holds the three one below another
    up: the linear layer up; of a gated MLP gate and up, or one that holds both, the gate first unless `gate_last`
    up_bias: whether `up` has a bias where the specification's MLP has biases
    attention_norm, mlp_norm: the norms before (of a "post" layer: behind) attention and MLP
    query_norm, key_norm: the norms of each head, where the specification has them
    """

    layer: str
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    attention_norm: str
    mlp_norm: str
    query_norm: str = ""
    key_norm: str = ""
    gate_last: bool = False
    up_bias: bool = True


@dataclass(frozen=True, slots=True)
class Stack:
    """The `TransformerWeights` of a checkpoint.

    weights: the view that holds layers, embedding and final norm
    first: the number of the first layer of the stack in the checkpoint
    relative: reads the tables of a layer's disentangled attention, from its weights and those of its scope
    """

    spec: TransformerSpec
    weights: Weights
    names: LayerNames
    embedding: EmbeddingWeights | None = None
    final_norm: Affine | None = None
    first: int = 0
    relative: Callable[[LayerWeights, Weights], RelativeWeights] | None = None

    def layers(self) -> Iterator[LayerWeights]:
        """See `TransformerWeights.layers`."""
        for i, spec in enumerate(self.spec.layers):
            scope = self.weights.scope(self.names.layer.format(self.first + i))
            layer = read_layer(spec, scope, self.names)
            yield layer if self.relative is None else replace(layer, relative=self.relative(layer, scope))


def read_layer(spec: LayerSpec, weights: Weights, names: LayerNames) -> LayerWeights:
    """The weights of one layer. ModelError for tensors that are missing or of another shape than the specification."""
    hidden, kv = spec.hidden, spec.kv_width
    if len(names.qkv) == 1:
        whole = weights.affine(names.qkv[0], spec.query_width + 2 * kv, hidden, spec.qkv_bias)
        query, key_value = _rows(whole, 0, spec.query_width), _rows(whole, spec.query_width, None)
    else:
        query = weights.affine(names.qkv[0], spec.query_width, hidden, spec.qkv_bias)
        parts = [weights.affine(name, kv, hidden, spec.qkv_bias) for name in names.qkv[1:]]
        key_value = _stacked(parts)
    up_bias = spec.mlp_bias and names.up_bias
    if len(names.up) == 1:
        up = weights.affine(names.up[0], spec.mlp * (2 if spec.gated else 1), hidden, up_bias)
        if spec.gated and names.gate_last:
            up = _stacked([_rows(up, spec.mlp, None), _rows(up, 0, spec.mlp)])
    else:
        up = _stacked([weights.affine(name, spec.mlp, hidden, up_bias) for name in names.up])
    qk = spec.qk_norm
    return LayerWeights(
        query=query,
        key_value=key_value,
        out=weights.affine(names.out, hidden, spec.query_width, spec.out_bias),
        up=up,
        down=weights.affine(names.down, hidden, spec.mlp, spec.mlp_bias),
        attention_norm=weights.norm(names.attention_norm, hidden, spec.norm) if spec.attention_norm else None,
        mlp_norm=weights.norm(names.mlp_norm, hidden, spec.norm),
        query_norm=None if qk is None else weights.norm(names.query_norm, spec.head_dim, qk),
        key_norm=None if qk is None else weights.norm(names.key_norm, spec.head_dim, qk),
    )


def _rows(affine: Affine, start: int, stop: int | None) -> Affine:
    return Affine(affine.weight[start:stop], None if affine.bias is None else affine.bias[start:stop])


def _stacked(parts: list[Affine]) -> Affine:
    biases = [part.bias for part in parts if part.bias is not None]
    return Affine(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)
