"""The vision tower of Qwen3-VL: from patches of pixels to the tokens of a language model.

Behaviour reference: `Qwen3VLVisionModel` in transformers' `modeling_qwen3_vl.py`; deepstack after Meng et al., 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from rerankd.layers.layout import separate_layout
from rerankd.layers.spec import Affine, TransformerSpec
from rerankd.layers.transformer import Executor, Transformer
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.grids import Grid, coordinates, resampled, steps
from rerankd.models.patch_merger import PatchMerger
from rerankd.models.stack import LayerNames, Stack
from rerankd.models.vision_shape import VisionShape, layer_of

NAMES = LayerNames(
    layer="blocks.{}",
    qkv=("attn.qkv",),
    out="attn.proj",
    up=("mlp.linear_fc1",),
    down="mlp.linear_fc2",
    attention_norm="norm1",
    mlp_norm="norm2",
)


class VisionTower:
    """Patch embedding, interpolated learned positions, layers, and the mergers.

    The layers are cut behind each one whose states a deepstack merger reads.
    """

    def __init__(self, config: Config, weights: Weights, executor: Executor) -> None:
        shape = VisionShape.of(config)
        shape.expect_in(config, weights)
        self.executor, self.merge = executor, shape.merge
        pixels = (shape.channels, shape.temporal_patch, shape.patch, shape.patch)
        # A convolution whose stride is its kernel is a GEMM with each flattened patch.
        kernel = weights.tensor("patch_embed.proj.weight", shape.hidden, *pixels).flatten(1)
        self.embed = executor.projection(Affine(kernel, weights.tensor("patch_embed.proj.bias", shape.hidden)))
        positions = weights.tensor("pos_embed.weight", shape.positions, shape.hidden, dtype=torch.float32)
        side = math.isqrt(shape.positions)
        self.positions = positions.view(side, side, shape.hidden)
        self.stages: list[Transformer | None] = []
        cuts = [0, *(layer + 1 for layer in shape.deepstack), shape.depth]
        for first, stop in pairwise(cuts):
            spec = TransformerSpec((layer_of(shape),) * (stop - first))
            stack = Stack(spec, weights, NAMES, first=first)
            self.stages.append(executor.transformer(spec, stack) if spec.layers else None)
        joined = shape.hidden * shape.merge**2
        merger = partial(PatchMerger, executor=executor, joined=joined, inner=joined, out=shape.out)
        deep = (weights.scope(f"deepstack_merger_list.{i}") for i in range(len(shape.deepstack)))
        # The deepstack's mergers norm joined patches; the last merger norms each patch by itself.
        self.mergers = [*map(merger, deep), merger(weights.scope("merger"), normed=shape.hidden)]

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Encode several images and videos, packed.

        pixels: [patches, channels * temporal_patch * patch * patch], one after another, in an order in which
            merge x merge neighbours follow one another
        grids: the grid of each image and video
        Returns [1 + deepstack layers, tokens, out]: the tokens, then the additions to them after each of the language
        model's first layers.
        """
        device, dtype = self.executor.device, self.executor.dtype
        x = self.embed(pixels.to(device, dtype))
        x = x + torch.cat([resampled(self.positions, grid, self.merge) for grid in grids]).to(dtype)
        positions = torch.cat([coordinates(grid, self.merge, device) for grid in grids], 1)
        layout = separate_layout(steps(grids))
        merged = []
        for stage, merger in zip(self.stages, self.mergers, strict=True):
            x = x if stage is None else stage(x, layout, positions).to(dtype)
            merged.append(merger(x))
        return torch.stack([merged[-1], *merged[:-1]])
