"""Transformers on a CPU: weights prepared for the kernels, and layers that run over micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from rerankd.backends.cpu.embedding import NormedEmbedding
from rerankd.backends.cpu.layers import Layers
from rerankd.backends.cpu.linear import Linear
from rerankd.backends.cpu.micro_batches import MicroBatch, in_micro_batches
from rerankd.backends.cpu.norm import LayerNorm, NoNorm, NormRope, PlainLayerNorm, RMSNorm, RowNorm, States
from rerankd.backends.cpu.post_norm import PostNormLayer
from rerankd.backends.cpu.pre_norm import PreNormLayer
from rerankd.backends.cpu.quantization import LinearName, quantized
from rerankd.backends.cpu.rows import index_add, to_dense
from rerankd.backends.cpu.runtime import Runtime
from rerankd.backends.torch.transformer import embed, norm, rotations_of
from rerankd.layers.layout import AttentionLayout, kept_layout
from rerankd.layers.spec import Affine, LayerSpec, LayerWeights, Norm, TransformerSpec, TransformerWeights
from rerankd.layers.transformer import Additions, Tokens

AnyLayer: TypeAlias = PostNormLayer | PreNormLayer


class PostNormTransformer:
    """A `Transformer` of "post" layers: an encoder."""

    def __init__(self, spec: TransformerSpec, weights: TransformerWeights, runtime: Runtime) -> None:
        self.spec = spec
        self.runtime = runtime
        assert weights.embedding is not None, "an encoder reads tokens"
        self.embedding = NormedEmbedding(spec, weights.embedding, runtime.kernels)
        self.layers = [
            post_norm_layer(layer_spec, layer_weights, runtime, i)
            for i, (layer_spec, layer_weights) in enumerate(zip(spec.layers, weights.layers(), strict=True))
        ]
        self._all_but_last = Layers(self.layers, runtime)

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Transformer.embed`."""
        return embed(tokens, self.embedding.weights, self.spec).to(self.runtime.dtype)

    def __call__(
        self,
        x: Tokens | Tensor,
        layout: AttentionLayout,
        positions: Tensor | None = None,
        keep: Sequence[int] | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """See `Transformer`."""
        assert additions is None, "nothing is added to the states of an encoder"
        batches = in_micro_batches(layout, self.runtime.rows_per_tile(self.spec.layers[0].mlp))
        last = [(batch.layout, None) for batch in batches] if keep is None else list(_kept(batches, keep))
        # One call computes the embeddings beside the layers, where kernels compute both.
        embeds = isinstance(x, Tokens) and self.embedding.kernels is not None
        states = [] if embeds else self._first(x, batches)
        with self._all_but_last.recorded():
            if embeds:
                states = self._first(x, batches)
            self._all_but_last.through(
                lambda layer: [
                    layer(batch_states, batch.layout) for batch_states, batch in zip(states, batches, strict=True)
                ]
            )
            final = self.layers[-1]
            states = [
                final(batch_states, last_layout, rows)
                for batch_states, (last_layout, rows) in zip(states, last, strict=True)
            ]
        rows_of_batches = [to_dense(batch_states.float32) for batch_states in states]
        return torch.cat(rows_of_batches) if rows_of_batches else torch.empty(0, self.spec.hidden)

    def _first(self, x: Tokens | Tensor, batches: Sequence[MicroBatch]) -> list[States]:
        """The first layer's input of each micro-batch."""
        if isinstance(x, Tensor):
            return [States.of(x[batch.keys].float(), self.runtime) for batch in batches]
        states = []
        for batch in batches:
            rows = batch.keys
            states.append(States.empty(rows.stop - rows.start, self.spec.hidden, self.runtime))
            self.embedding(x, rows, states[-1])
        return states


class PreNormTransformer:
    """A `Transformer` of "pre" layers: a decoder, or a vision tower."""

    def __init__(self, spec: TransformerSpec, weights: TransformerWeights, runtime: Runtime) -> None:
        self.spec = spec
        self.runtime = runtime
        self.embedding = weights.embedding
        self.final_norm = weights.final_norm
        self.layers = [
            pre_norm_layer(layer_spec, layer_weights, runtime, i)
            for i, (layer_spec, layer_weights) in enumerate(zip(spec.layers, weights.layers(), strict=True))
        ]
        self._all_but_last = Layers(self.layers, runtime)

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Transformer.embed`."""
        assert self.embedding is not None, "this transformer has no embedding"
        return embed(tokens, self.embedding, self.spec).to(self.runtime.dtype)

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
            x = self.embed(x)
        rows_per_tile = self.runtime.rows_per_tile(self.spec.layers[0].mlp)
        batches = in_micro_batches(layout, rows_per_tile)
        last, rows = batches, None
        if keep is not None:
            # Nothing above the last layer reads the other rows.
            last = in_micro_batches(kept_layout(layout, keep), rows_per_tile)
            rows = torch.tensor(keep, dtype=torch.int64)
        rotations = rotations_of(self.spec, positions, self.runtime.dtype)
        states = self.runtime.to_rows(x.to(self.runtime.dtype)) if self._blocked else x.to(self.runtime.dtype)
        recorded, added = self._all_but_last.recorded, 0
        if additions is not None:
            for layer, features in zip(self.layers[:-1], additions.features, strict=False):
                with recorded():
                    layer(states, rotations.get(layer.spec.rotary), batches)
                index_add(states, additions.rows, features.to(self.runtime.dtype))
            added = len(additions.features)
        with recorded():
            self._all_but_last.through(
                lambda layer: layer(states, rotations.get(layer.spec.rotary), batches), first=added
            )
            states = self.layers[-1](states, rotations.get(self.layers[-1].spec.rotary), last, rows)
        last_states = to_dense(states).float()
        return last_states if self.spec.final_norm is None else norm(last_states, self.spec.final_norm, self.final_norm)

    @property
    def _blocked(self) -> bool:
        """Whether kernels compute the layers, which then pass on rows in the blocked layout."""
        return self.layers[0].attention_norm.kernels is not None


def post_norm_layer(spec: LayerSpec, weights: LayerWeights, runtime: Runtime, index: int) -> PostNormLayer:
    """The layer, with its weights prepared."""
    linear = _linears(spec, weights, runtime, index)
    assert weights.attention_norm is not None, 'a "post" layer has a norm behind its attention'
    return PostNormLayer(
        spec=spec,
        runtime=runtime,
        query=linear["query"],
        key_value=linear["key_value"],
        attention_out=linear["out"],
        attention_norm=_layer_norm(spec.norm, weights.attention_norm, runtime),
        up=linear["up"],
        down=linear["down"],
        out_norm=_layer_norm(spec.norm, weights.mlp_norm, runtime),
    )


def pre_norm_layer(spec: LayerSpec, weights: LayerWeights, runtime: Runtime, index: int) -> PreNormLayer:
    """The layer, with its weights prepared."""
    linear = _linears(spec, weights, runtime, index)
    return PreNormLayer(
        spec=spec,
        runtime=runtime,
        query=linear["query"],
        key_value=linear["key_value"],
        out=linear["out"],
        up=linear["up"],
        down=linear["down"],
        query_norm_rope=_norm_rope(spec, weights.query_norm, runtime),
        key_norm_rope=_norm_rope(spec, weights.key_norm, runtime),
        attention_norm=_row_norm(spec.norm, weights.attention_norm, runtime),
        mlp_norm=_row_norm(spec.norm, weights.mlp_norm, runtime),
    )


def _linears(spec: LayerSpec, weights: LayerWeights, runtime: Runtime, index: int) -> dict[LinearName, Linear]:
    names = quantized(spec, index)
    affines: dict[LinearName, Affine] = {
        "query": weights.query,
        "key_value": weights.key_value,
        "out": weights.out,
        "up": weights.up,
        "down": weights.down,
    }
    return {
        name: (runtime.linear if name in names else runtime.precise_linear)(affine.weight, affine.bias)
        for name, affine in affines.items()
    }


def _layer_norm(spec: Norm, weights: Affine, runtime: Runtime) -> LayerNorm:
    bias = torch.zeros_like(weights.weight) if weights.bias is None else weights.bias
    return LayerNorm(weights.weight, bias, spec.eps, runtime.kernels)


def _row_norm(spec: Norm, weights: Affine | None, runtime: Runtime) -> RowNorm:
    if weights is None:
        return NoNorm()
    weight = weights.weight.to(runtime.dtype)
    if spec.kind == "rms":
        return RMSNorm(weight, spec.eps, runtime.kernels)
    return PlainLayerNorm(weight, None if weights.bias is None else weights.bias.to(runtime.dtype), spec.eps)


def _norm_rope(spec: LayerSpec, weights: Affine | None, runtime: Runtime) -> NormRope:
    normed = None
    if spec.qk_norm is not None and weights is not None:
        normed = RMSNorm(weights.weight.to(runtime.dtype), spec.qk_norm.eps, runtime.kernels)
    return NormRope(spec.head_dim, normed, spec.rotary is not None)


def _kept(batches: Sequence[MicroBatch], keep: Sequence[int]) -> Iterator[tuple[AttentionLayout, Tensor]]:
    """For each micro-batch: the layout of its kept rows, and the indices of these rows."""
    for batch in batches:
        kept_rows = [row - batch.keys.start for row in keep if batch.keys.start <= row < batch.keys.stop]
        yield kept_layout(batch.layout, kept_rows), torch.tensor(kept_rows, dtype=torch.int64)
