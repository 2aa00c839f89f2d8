"""The vision tower of Qwen3-VL: from patches of pixels to the tokens of a language model.

Behaviour reference: `Qwen3VLVisionModel` in transformers' `modeling_qwen3_vl.py`; deepstack after Meng et al., 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import Span
from rerankd.layers.attention import AttentionLayout
from rerankd.layers.attention.layout import separate_layout
from rerankd.layers.norm import LayerNorm
from rerankd.layers.rotary import Rotation, rotate
from rerankd.layers.rows import plain
from rerankd.models.config import Config
from rerankd.models.weights import Weights

EPS = 1e-6
THETA = 10000.0

Grid = tuple[int, int, int]
"""Patches in time, height and width."""


@dataclass(frozen=True, slots=True)
class VisionShape:
    hidden: int
    depth: int
    heads: int
    mlp: int
    out: int
    positions: int
    merge: int
    patch: int
    temporal_patch: int
    channels: int
    deepstack: tuple[int, ...]

    @classmethod
    def of(cls, config: Config) -> VisionShape:
        config.require("hidden_act", "gelu_pytorch_tanh")
        positions = config.size("num_position_embeddings")
        if math.isqrt(positions) ** 2 != positions:
            raise config.wrong("num_position_embeddings", "must be a square")
        hidden, depth, heads = config.size("hidden_size"), config.size("depth"), config.size("num_heads")
        # Half of a head's pairs turn by a patch's row, the other half by its column.
        if hidden % (4 * heads):
            raise config.wrong("num_heads", f"must divide `hidden_size` ({hidden}) into multiples of 4")
        layers = config.entries.get("deepstack_visual_indexes") or []
        if not isinstance(layers, list) or not all(type(layer) is int and 0 <= layer < depth for layer in layers):
            raise config.wrong("deepstack_visual_indexes", f"must be a list of layers, from 0 to {depth - 1}")
        if layers != sorted(set(layers)):
            raise config.wrong("deepstack_visual_indexes", "must rise")
        return cls(
            hidden=hidden,
            depth=depth,
            heads=heads,
            mlp=config.size("intermediate_size"),
            out=config.size("out_hidden_size"),
            positions=positions,
            merge=config.size("spatial_merge_size", 2),
            patch=config.size("patch_size", 16),
            temporal_patch=config.size("temporal_patch_size", 2),
            channels=config.size("in_channels", 3),
            deepstack=tuple(layers),
        )

    def expect_in(self, config: Config, weights: Weights) -> None:
        """Refuse weights of other sizes than the configuration's."""
        for axis, (key, size) in enumerate(
            (
                ("hidden_size", self.hidden),
                ("in_channels", self.channels),
                ("temporal_patch_size", self.temporal_patch),
                ("patch_size", self.patch),
            )
        ):
            weights.expect_size(config, key, size, "patch_embed.proj.weight", axis=axis)
        weights.expect_size(config, "num_position_embeddings", self.positions, "pos_embed.weight")
        weights.expect_count(config, "depth", self.depth, "blocks")
        weights.expect_size(config, "intermediate_size", self.mlp, "blocks.0.mlp.linear_fc1.weight")
        merger = "merger.linear_fc1.weight"
        weights.expect_size(config, "spatial_merge_size", self.merge, merger, axis=1, each=self.merge * self.hidden)
        weights.expect_size(config, "out_hidden_size", self.out, "merger.linear_fc2.weight")
        weights.expect_count(config, "deepstack_visual_indexes", len(self.deepstack), "deepstack_merger_list")


class VisionBlock:
    """x + attention(norm(x)), then x + mlp(norm(x)); every image, or pair of frames, attends to itself."""

    def __init__(self, shape: VisionShape, weights: Weights) -> None:
        self.runtime = weights.runtime
        self.shape = shape
        hidden = shape.hidden
        self.norm1 = weights.layer_norm("norm1", hidden, EPS)
        self.norm2 = weights.layer_norm("norm2", hidden, EPS)
        self.qkv = weights.linear("attn.qkv", inputs=hidden, outputs=3 * hidden, bias=True)
        self.out = weights.linear("attn.proj", inputs=hidden, outputs=hidden, bias=True)
        self.up = weights.linear("mlp.linear_fc1", inputs=hidden, outputs=shape.mlp, bias=True)
        self.down = weights.linear("mlp.linear_fc2", inputs=shape.mlp, outputs=hidden, bias=True)

    def __call__(self, x: Tensor, rotation: Rotation, layout: AttentionLayout) -> Tensor:
        """x: [patches, hidden]."""
        heads, head_dim = self.shape.heads, self.shape.hidden // self.shape.heads
        queries, keys, values = x.new_empty(3, len(x), heads, head_dim).unbind(0)
        for rows in self.runtime.chunks(len(x), self.shape.mlp):
            query, key, value = plain(self.qkv(self.norm1(x[rows]))).view(-1, 3, heads, head_dim).unbind(1)
            rotate(query, rotation.rows(rows), out=queries[rows])
            rotate(key, rotation.rows(rows), out=keys[rows])
            values[rows] = value
        attended = self.runtime.attend(queries.flatten(1), keys.flatten(1), values.flatten(1), head_dim, layout)
        out = torch.empty_like(x)
        for rows in self.runtime.chunks(len(x), self.shape.mlp):
            inner = plain(self.out.plus(attended[rows], x[rows]))
            self.down.plus(self.up.then(self.norm2(inner), "gelu_tanh"), inner, out=out[rows])
        return out


class PatchMerger:
    """Joins merge x merge neighbouring patches into one token of the language model's width.

    `norm_joined` norms the joined patches (deepstack), in place of each one before they are joined.
    """

    def __init__(self, shape: VisionShape, weights: Weights, norm_joined: bool) -> None:
        self.runtime = weights.runtime
        self.joined = shape.hidden * shape.merge**2
        self.norm_joined = norm_joined
        self.norm: LayerNorm = weights.layer_norm("norm", self.joined if norm_joined else shape.hidden, EPS)
        self.up = weights.linear("linear_fc1", inputs=self.joined, outputs=self.joined, bias=True)
        self.down = weights.linear("linear_fc2", inputs=self.joined, outputs=shape.out, bias=True)
        self.out = shape.out

    def __call__(self, x: Tensor) -> Tensor:
        """[patches, hidden] -> [tokens, out]."""
        joined = self.norm(x.view(-1, self.joined)) if self.norm_joined else self.norm(x).view(-1, self.joined)
        tokens = joined.new_empty(len(joined), self.out)
        for rows in self.runtime.chunks(len(joined), self.joined):
            self.down(self.up.then(joined[rows], "gelu"), out=tokens[rows])
        return tokens


class VisionTower:
    """Patch embedding, interpolated learned positions, blocks, and the mergers."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.runtime = weights.runtime
        self.shape = shape = VisionShape.of(config)
        shape.expect_in(config, weights)
        pixels = (shape.channels, shape.temporal_patch, shape.patch, shape.patch)
        # A convolution whose stride is its kernel is a product with each flattened patch.
        kernel = weights.tensor("patch_embed.proj.weight", shape.hidden, *pixels).flatten(1)
        self.embed = self.runtime.linear(kernel, weights.tensor("patch_embed.proj.bias", shape.hidden))
        side = int(shape.positions**0.5)
        positions = weights.tensor("pos_embed.weight", shape.positions, shape.hidden, dtype=torch.float32)
        self.positions = positions.view(side, side, shape.hidden)
        self.blocks = [VisionBlock(shape, weights.scope(f"blocks.{i}")) for i in range(shape.depth)]
        self.merger = PatchMerger(shape, weights.scope("merger"), norm_joined=False)
        self.deepstack = {
            layer: PatchMerger(shape, weights.scope(f"deepstack_merger_list.{i}"), norm_joined=True)
            for i, layer in enumerate(shape.deepstack)
        }

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Encode several images and videos, packed.

        pixels: [patches, channels * temporal_patch * patch * patch], one after another, in an order in which
            merge x merge neighbours follow one another
        grids: of each
        Returns [1 + deepstack layers, tokens, out]: the tokens, then what is added to them after each of the
        language model's first layers.
        """
        x = plain(self.embed(pixels.to(self.runtime.device, self.runtime.dtype)))
        x += torch.cat([self._positions(grid) for grid in grids]).to(x.dtype)
        rotation = self._rotation(grids)
        layout = separate_layout(_steps(grids))
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, layout)
            if i in self.deepstack:
                stages.append(self.deepstack[i](x))
        return torch.stack([self.merger(x), *stages])

    def _positions(self, grid: Grid) -> Tensor:
        """The learned square grid of positions, resampled bilinearly to the image's: float32 [patches, hidden]."""
        time, height, width = grid
        by_row = _resample(self.positions, height)
        both = _resample(by_row.transpose(0, 1), width).transpose(0, 1)
        return self._merge_order(both).repeat(time, 1)

    def _rotation(self, grids: Sequence[Grid]) -> Rotation:
        """Half of a head's pairs turn by a patch's row, the other half by its column."""
        head_dim = self.shape.hidden // self.shape.heads
        device = self.runtime.device
        exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=device) / (head_dim // 2)
        frequencies = 1.0 / THETA**exponents
        coordinates = []
        for time, height, width in grids:
            rows = torch.arange(height, device=device)[:, None].expand(height, width)
            columns = torch.arange(width, device=device)[None, :].expand(height, width)
            coordinates.append(self._merge_order(torch.stack([rows, columns], -1)).repeat(time, 1))
        angles = (torch.cat(coordinates).float()[..., None] * frequencies).flatten(1)[:, None]
        return Rotation(angles.cos().to(self.runtime.dtype), angles.sin().to(self.runtime.dtype))

    def _merge_order(self, grid: Tensor) -> Tensor:
        """[height, width, n] -> [height * width, n], neighbours that merge into one token side by side."""
        height, width, n = grid.shape
        merge = self.shape.merge
        blocks = grid.reshape(height // merge, merge, width // merge, merge, n)
        return blocks.transpose(1, 2).reshape(height * width, n)


def _resample(table: Tensor, count: int) -> Tensor:
    """`count` rows spread evenly from the first to the last of `table` [rows, ...], linearly interpolated."""
    where = torch.linspace(0, len(table) - 1, count, device=table.device)
    below = where.long()
    above = (below + 1).clamp(max=len(table) - 1)
    weight = (where - below).view(-1, *[1] * (table.dim() - 1))
    return table[below] * (1 - weight) + table[above] * weight


def _steps(grids: Sequence[Grid]) -> list[Span]:
    """The patches of each image, or of each step in time of a video."""
    spans, row = [], 0
    for time, height, width in grids:
        for _ in range(time):
            spans.append(Span(row, row + height * width))
            row += height * width
    return spans
