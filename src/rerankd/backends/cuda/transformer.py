"""Transformer layers on a GPU: GEMMs by cuBLAS, everything between them by fused kernels, attention by one kernel."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from rerankd.backends.cpu.quantization import LinearName, quantized
from rerankd.backends.cuda.flash import NO_NORM_ROPE, NormRope, flash_attention
from rerankd.backends.cuda.float8 import Operand, add_norm_quantised, gated_quantised
from rerankd.backends.cuda.graphs import Graphs, Inputs, Recorder
from rerankd.backends.cuda.kernels import add_norm, gated, norm_rope, norm_sum
from rerankd.backends.cuda.linear import Fp8Linear, Linear, PlainLinear, linear, stacked
from rerankd.backends.cuda.tiles import Tiles, Tiling
from rerankd.backends.ranks import Ranks
from rerankd.backends.torch.attention import alibi_slopes
from rerankd.backends.torch.transformer import activate, embed
from rerankd.layers.layout import AttentionLayout, kept_layout
from rerankd.layers.rotary import Rotary, Rotation
from rerankd.layers.spec import Affine, LayerSpec, LayerWeights, TransformerSpec, TransformerWeights
from rerankd.layers.transformer import Additions, Tokens


class Layer:
    """One layer with its weights as the GEMMs take them: query, key and value as one."""

    def __init__(
        self,
        whole: LayerSpec,
        weights: LayerWeights,
        device: torch.device,
        dtype: torch.dtype,
        fp8: Set[LinearName],
        ranks: Ranks,
    ) -> None:
        """whole: the layer, of which this process has the part `weights`; the outputs of all `ranks` are summed
        fp8: the linear layers that are computed in float8
        """
        self.spec, self.ranks, self.dtype = ranks.shard.layer(whole), ranks, dtype
        spec = self.spec
        self.qkv: Linear | None = None
        self.query = linear(weights.query, "query" in fp8)
        self.key_value = linear(weights.key_value, "key_value" in fp8)
        if type(self.query) is type(self.key_value):
            cut = spec.query_width
            self.qkv = linear(stacked(weights.query, weights.key_value), "query" in fp8)
            self.query, self.key_value = self.qkv.rows(0, cut), self.qkv.rows(cut, None)
        self.out, self.up = linear(weights.out, "out" in fp8), linear(weights.up, "up" in fp8)
        self.down = linear(weights.down, "down" in fp8)
        self.attention_norm, self.mlp_norm = weights.attention_norm, weights.mlp_norm
        self.query_norm, self.key_norm = weights.query_norm, weights.key_norm
        # In 16 bits the approximation with tanh lies within the rounding of its result.
        self.fuses_gelu = spec.activation in ("gelu", "gelu_tanh") and device.type == "cuda" and dtype != torch.float32
        self.slopes = None
        if spec.attention_bias == "alibi":
            slopes = ranks.shard.of_heads(alibi_slopes(whole.heads), whole)
            self.slopes = torch.tensor(slopes, dtype=torch.float32, device=device)

    def before_attention(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Operand]:
        """x + delta, and the input of `attend` in a "pre" layer."""
        if self.attention_norm is None:
            x = x if delta is None else x + delta
            return x, Operand(x)
        return self._normed(x, delta, self.attention_norm, (self.query, self.key_value))

    def before_mlp(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Operand]:
        """x + delta, and the input of `mlp` in a "pre" layer."""
        return self._normed(x, delta, self.mlp_norm, (self.up,))

    def _normed(
        self, x: Tensor, delta: Tensor | None, weights: Affine, readers: Sequence[Linear]
    ) -> tuple[Tensor, Operand]:
        quantises = any(isinstance(reader, Fp8Linear) for reader in readers)
        if not quantises:
            x, normed = add_norm(x, delta, self.spec.norm, weights, self.dtype)
            return x, Operand(normed)
        is_read = any(isinstance(reader, PlainLinear) for reader in readers)
        return add_norm_quantised(x, delta, self.spec.norm, weights, self.dtype if is_read else None)

    def attend(self, x: Operand, tiles: Tiles, rotation: Rotation | None, keep: Tensor | None) -> Tensor:
        """Attention and its output projection: [T, hidden], or the rows `keep`, which `tiles` then have for queries."""
        spec, cut = self.spec, self.spec.query_width
        if keep is None and self.qkv is not None:
            qkv = self.qkv(x)
            queries, keys_values = qkv[:, :cut], qkv[:, cut:]
        else:
            queries, keys_values = self.query(x if keep is None else x.rows(keep)), self.key_value(x)
        query_rotation = rotation if keep is None or rotation is None else rotation.rows(keep)
        query_norm_rope, norm = NormRope(query_rotation), spec.qk_norm
        if norm is not None and norm.kind == "rms" and self.query_norm is not None:
            query_norm_rope = NormRope(query_rotation, self.query_norm.weight, norm.eps)
        elif norm is not None:
            norm_rope(queries, spec.heads, spec.head_dim, query_rotation, norm, self.query_norm)
            query_norm_rope = NO_NORM_ROPE
        # Queries are read once by attention, which norms and rotates them; keys are read many times.
        norm_rope(keys_values, spec.kv_heads or spec.heads, spec.head_dim, rotation, norm, self.key_norm)
        keys, values = keys_values[:, : spec.kv_width], keys_values[:, spec.kv_width :]
        q, k, v = (part.view(len(part), -1, spec.head_dim) for part in (queries, keys, values))
        attended = flash_attention(q, k, v, tiles, spec.softmax_scale, spec.window, self.slopes, query_norm_rope)
        return self.ranks.sum(self.out(Operand(attended)))

    def mlp(self, x: Operand) -> Tensor:
        """The MLP."""
        spec = self.spec
        if self.fuses_gelu and not spec.gated and isinstance(self.up, PlainLinear):
            inner = Operand(self.up.gelu(x))
        elif not spec.gated:
            inner = Operand(activate(self.up(x), spec.activation))
        elif isinstance(self.down, Fp8Linear):
            inner = Operand(None, gated_quantised(self.up(x), spec.activation))
        else:
            inner = Operand(gated(self.up(x), spec.activation))
        return self.ranks.sum(self.down(inner))


class Angles:
    """A rotary embedding with its constants on the device, where a recorded forward must find them."""

    def __init__(self, rotary: Rotary, device: torch.device) -> None:
        self.frequencies = torch.tensor(rotary.frequencies, dtype=torch.float32, device=device)
        self.axes = torch.tensor(rotary.axes, device=device) if rotary.axes else None
        self.factor = rotary.factor

    def __call__(self, positions: Tensor) -> Rotation:
        """As `Rotary.rotation`, in float32."""
        places = positions.float()
        # The kernels read the angles of a row side by side.
        by_pair = places[:, None] if self.axes is None else places.index_select(0, self.axes).T.contiguous()
        angles = (by_pair * self.frequencies)[:, None]
        return Rotation(angles.cos() * self.factor, angles.sin() * self.factor)


Rotations: TypeAlias = "dict[Rotary | None, Rotation]"


@dataclass(slots=True)
class Batch:
    """The inputs that all layers of one forward share.

    last: the tiles of a last layer that computes only the rows `keep`
    """

    tiles: Tiles
    keep: Tensor | None
    last: Tiles | None
    additions: Additions | None = None


class CudaTransformer:
    """A `Transformer` of fused kernels. States between layers are in the dtype of the weights."""

    def __init__(
        self,
        spec: TransformerSpec,
        weights: TransformerWeights,
        device: torch.device,
        dtype: torch.dtype,
        fp8: bool = False,
        record: Recorder | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """record: how forwards of small batches are recorded; None for not at all"""
        self.spec, self.device, self.dtype = spec, device, dtype
        self.embedding, self.final_norm = weights.embedding, weights.final_norm
        self.layers = [
            Layer(
                layer_spec,
                layer_weights,
                device,
                dtype,
                quantized(layer_spec, i) if fp8 else frozenset(),
                ranks or Ranks(),
            )
            for i, (layer_spec, layer_weights) in enumerate(zip(spec.layers, weights.layers(), strict=True))
        ]
        self.angles = {layer.rotary: Angles(layer.rotary, device) for layer in spec.layers if layer.rotary is not None}
        self.graphs = None if record is None else Graphs(self.padded, device, record)

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Transformer.embed`. Where a table lacks a row, the result is NaN: an index beyond a table would end the
        device's context, and an IndexError would need a wait for the device."""
        tables = self.embedding
        assert tables is not None, "this transformer has no embedding"
        ids, beyond = _within(tokens.ids, tables.words)
        positions, types = tokens.positions, tokens.types
        if tables.positions is not None:
            positions, too_far = _within(positions, tables.positions)
            beyond = beyond | too_far
        if tables.types is not None and types is not None:
            types, unknown = _within(types, tables.types)
            beyond = beyond | unknown
        x = embed(Tokens(ids, positions, types), tables, self.spec).to(self.dtype)
        return x.masked_fill_(beyond[:, None], float("nan"))

    def __call__(
        self,
        x: Tokens | Tensor,
        layout: AttentionLayout,
        positions: Tensor | None = None,
        keep: Sequence[int] | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """See `Transformer`."""
        if isinstance(x, Tokens) and additions is None and self.graphs is not None:
            replayed = self.graphs(x, layout, positions, keep)
            if replayed is not None:
                return replayed
        tiling = Tiling(self.device)
        kept, last = None, None
        if keep is not None:
            kept = torch.tensor(keep, dtype=torch.int64)
            kept = (kept.pin_memory() if self.device.type == "cuda" else kept).to(self.device, non_blocking=True)
            last = tiling(kept_layout(layout, keep))
        return self._run(x, positions, Batch(layout.derived(tiling), kept, last, additions))

    def padded(self, inputs: Inputs) -> Tensor:
        """The last states of padded inputs, by work on the device alone."""
        (form, values), (last_form, last_values) = inputs.tiles(), inputs.last()
        last = None if inputs.keep is None else last_form.on(last_values)
        return self._run(inputs.tokens, inputs.positions, Batch(form.on(values), inputs.keep, last))

    def _run(self, x: Tokens | Tensor, positions: Tensor | None, batch: Batch) -> Tensor:
        assert positions is not None or not self.angles, "rotation needs positions"
        rotations: Rotations = {rotary: angles(cast(Tensor, positions)) for rotary, angles in self.angles.items()}
        states = self.embed(x) if isinstance(x, Tokens) else x.to(self.dtype)
        post = self.spec.layers[0].placement == "post"
        return (self._post if post else self._pre)(states, rotations, batch)

    def _pre(self, states: Tensor, rotations: Rotations, batch: Batch) -> Tensor:
        delta: Tensor | None = None
        for i, layer in enumerate(self.layers):
            rotation = rotations.get(layer.spec.rotary)
            keep, tiles = self._of(i, batch)
            states, normed = layer.before_attention(states, delta)
            delta = layer.attend(normed, tiles, rotation, keep)
            if keep is not None:
                states = states.index_select(0, keep)
            states, normed = layer.before_mlp(states, delta)
            delta = layer.mlp(normed)
            if batch.additions is not None and i < len(batch.additions.features):
                delta.index_add_(0, batch.additions.rows, batch.additions.features[i].to(delta.dtype))
        if self.spec.final_norm is None:
            return (states if delta is None else states + delta).float()
        assert self.final_norm is not None, "the norm has no weights"
        return add_norm(states, delta, self.spec.final_norm, self.final_norm, torch.float32)[1]

    def _post(self, states: Tensor, rotations: Rotations, batch: Batch) -> Tensor:
        inputs = states
        for i, layer in enumerate(self.layers):
            spec = layer.spec
            keep, tiles = self._of(i, batch)
            assert layer.attention_norm is not None, "a post-norm layer has two norms"
            delta = layer.attend(Operand(inputs), tiles, rotations.get(spec.rotary), keep)
            if keep is not None:
                states = states.index_select(0, keep)
            states, inputs = norm_sum(states, delta, spec.norm, layer.attention_norm, self.dtype)
            states, inputs = norm_sum(states, layer.mlp(Operand(inputs)), spec.norm, layer.mlp_norm, self.dtype)
        return states.float()

    def _of(self, i: int, batch: Batch) -> tuple[Tensor | None, Tiles]:
        """The rows that layer i computes, None for all, and its tiles."""
        if batch.last is None or i < len(self.layers) - 1:
            return None, batch.tiles
        return batch.keep, batch.last


def _within(indices: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The indices, at most the last row's, and which of them were beyond it."""
    last = len(table) - 1
    return indices.clamp(max=last), indices > last
