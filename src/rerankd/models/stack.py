"""The tensors of a stack of layers in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch

from rerankd.layers.spec import Affine, EmbeddingWeights, LayerSpec, LayerWeights, RelativeWeights, TransformerSpec
from rerankd.models.checkpoint.weights import Weights


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of a layer's tensors below its own prefix, without `.weight` and `.bias`.

    layer: the prefix of layer 0, 1, ..., with `{}` for the number
    qkv: the linear layers of query, key and value, or one layer with the three stacked in this order
    up: the linear layer up; for a gated MLP gate and up, or one layer with both, the gate first unless `gate_last`
    up_bias: whether `up` has a bias if the specification's MLP has biases
    attention_norm, mlp_norm: the norms before attention and MLP (after them in a "post" layer)
    query_norm, key_norm: the norms of each head, if the specification has them
    attention_output_norm, mlp_output_norm: the norms after attention and MLP, if the specification has them
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
    attention_output_norm: str = ""
    mlp_output_norm: str = ""
    gate_last: bool = False
    up_bias: bool = True


@dataclass(frozen=True, slots=True)
class Stack:
    """The `TransformerWeights` of a checkpoint.

    weights: the view of the checkpoint with layers, embedding and final norm
    first: the number in the checkpoint of the stack's first layer
    relative: reads the tables of a layer's disentangled attention, from its weights and those of its scope
    output_scale: the factor of the outputs of attention and MLP; it is multiplied into their last linear layers
    """

    spec: TransformerSpec
    weights: Weights
    names: LayerNames
    embedding: EmbeddingWeights | None = None
    final_norm: Affine | None = None
    first: int = 0
    relative: Callable[[LayerWeights, Weights], RelativeWeights] | None = None
    output_scale: float = 1.0

    def layers(self) -> Iterator[LayerWeights]:
        """See `TransformerWeights.layers`."""
        for i, spec in enumerate(self.spec.layers):
            scope = self.weights.scope(self.names.layer.format(self.first + i))
            layer = read_layer(spec, scope, self.names)
            if self.output_scale != 1.0:
                out, down = (_scaled(linear, self.output_scale) for linear in (layer.out, layer.down))
                layer = replace(layer, out=out, down=down)
            yield layer if self.relative is None else replace(layer, relative=self.relative(layer, scope))


def read_layer(spec: LayerSpec, weights: Weights, names: LayerNames) -> LayerWeights:
    """The weights of the part `weights.shard` of one layer. ModelError for missing tensors and for shapes that
    differ from the specification."""
    shard = weights.shard
    queries, keys, inner = shard.heads(spec), shard.kv_heads(spec), shard.mlp(spec)
    query, *key_value = _inputs(
        weights,
        names.qkv,
        [(spec.query_width, _values(queries, spec)), *[(spec.kv_width, _values(keys, spec))] * 2],
        spec,
        spec.qkv_bias,
    )
    up = _inputs(
        weights, names.up, [(spec.mlp, inner)] * (2 if spec.gated else 1), spec, spec.mlp_bias and names.up_bias
    )
    qk = spec.qk_norm
    output_norm = partial(weights.norm, width=spec.hidden, norm=spec.norm)
    return LayerWeights(
        query=query,
        key_value=_stacked(key_value),
        out=_output(weights, names.out, spec.query_width, _values(queries, spec), spec, spec.out_bias),
        up=_stacked(up[::-1] if spec.gated and names.gate_last else up),
        down=_output(weights, names.down, spec.mlp, inner, spec, spec.mlp_bias),
        attention_norm=weights.norm(names.attention_norm, spec.hidden, spec.norm) if spec.attention_norm else None,
        mlp_norm=weights.norm(names.mlp_norm, spec.hidden, spec.norm),
        query_norm=None if qk is None else weights.norm(names.query_norm, spec.head_dim, qk),
        key_norm=None if qk is None else weights.norm(names.key_norm, spec.head_dim, qk),
        attention_output_norm=output_norm(names.attention_output_norm) if spec.output_norms else None,
        mlp_output_norm=output_norm(names.mlp_output_norm) if spec.output_norms else None,
    )


def _inputs(
    weights: Weights, names: Sequence[str], parts: Sequence[tuple[int, slice]], spec: LayerSpec, bias: bool
) -> list[Affine]:
    """Linear layers that read hidden states: the width of each, and the rows of it to read. The layers have a name
    each, or are rows of one matrix under one name."""
    if len(names) > 1:
        named_parts = zip(names, parts, strict=True)
        return [weights.affine(name, width, spec.hidden, bias, rows=rows) for name, (width, rows) in named_parts]
    starts = [0, *accumulate(width for width, _ in parts)]
    return [
        weights.affine(names[0], starts[-1], spec.hidden, bias, rows=slice(start + rows.start, start + rows.stop))
        for start, (_, rows) in zip(starts, parts, strict=False)
    ]


def _output(weights: Weights, name: str, width: int, columns: slice, spec: LayerSpec, bias: bool) -> Affine:
    """A linear layer that gives hidden states, of some inputs. Its bias is added once, by the first part."""
    affine = weights.affine(name, spec.hidden, width, bias, columns=columns)
    return affine if weights.shard.rank == 0 else Affine(affine.weight)


def _scaled(linear: Affine, factor: float) -> Affine:
    return Affine(linear.weight * factor, None if linear.bias is None else linear.bias * factor)


def _values(heads: slice, spec: LayerSpec) -> slice:
    return slice(heads.start * spec.head_dim, heads.stop * spec.head_dim)


def _stacked(parts: list[Affine]) -> Affine:
    if len(parts) == 1:
        return parts[0]
    biases = [part.bias for part in parts if part.bias is not None]
    return Affine(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)
