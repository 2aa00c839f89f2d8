"""The vision tower of Qwen2-VL: from patches of pixels to the tokens of a language model.

Behaviour reference: `Qwen2VisionTransformerPretrainedModel` in transformers' `modeling_qwen2_vl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rerankd.layers.layout import separate_layout
from rerankd.layers.spec import Affine, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models import qwen3_vl_vision
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.grids import Grid, coordinates, steps
from rerankd.models.patch_merger import MergerNames, PatchMerger
from rerankd.models.stack import Stack
from rerankd.models.vision_shape import THETA, VisionShape, expect_heads, layer_of

NAMES = replace(qwen3_vl_vision.NAMES, up=("mlp.fc1",), down="mlp.fc2")
MERGER = MergerNames("ln_q", "mlp.0", "mlp.2")
DEFAULTS = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
"""transformers' own, which a folder that it writes leaves out."""


def shape_of(config: Config) -> VisionShape:
    """The sizes of the tower. Its `hidden_size` is that of the language model."""
    config = Config({**DEFAULTS, **config.entries}, config.source)
    config.require("hidden_act", "quick_gelu")
    if config.rotary().get("rope_theta", THETA) != THETA:
        raise config.wrong("rope_parameters", f"must have a `rope_theta` of {THETA:g}")
    hidden = config.size("embed_dim")
    return VisionShape(
        hidden=hidden,
        depth=config.layers("depth"),
        heads=expect_heads(config, "embed_dim"),
        mlp=hidden * config.size("mlp_ratio"),
        out=config.size("hidden_size"),
        positions=0,
        merge=config.size("spatial_merge_size", 2),
        patch=config.size("patch_size"),
        temporal_patch=config.size("temporal_patch_size", 2),
        channels=config.size("in_channels", 3),
        deepstack=(),
    )


def expect_in(config: Config, shape: VisionShape, weights: Weights) -> None:
    """Refuse weights of other sizes than the configuration's."""
    shape.expect_patches(config, "embed_dim", weights)
    weights.expect_count(config, "depth", shape.depth, "blocks")
    ratio = shape.mlp // shape.hidden
    weights.expect_size(config, "mlp_ratio", ratio, "blocks.0.mlp.fc1.weight", each=shape.hidden)
    joined = shape.merge * shape.hidden
    weights.expect_size(config, "spatial_merge_size", shape.merge, "merger.mlp.0.weight", axis=1, each=joined)
    weights.expect_size(config, "hidden_size", shape.out, "merger.mlp.2.weight")


class VisionTower:
    """Patch embedding, layers that turn by row and column, and the merger."""

    def __init__(self, config: Config, weights: Weights, executor: Executor) -> None:
        shape = shape_of(config)
        expect_in(config, shape, weights)
        self.executor, self.merge = executor, shape.merge
        pixels = (shape.channels, shape.temporal_patch, shape.patch, shape.patch)
        # A convolution whose stride is its kernel is a GEMM with each flattened patch.
        kernel = weights.tensor("patch_embed.proj.weight", shape.hidden, *pixels).flatten(1)
        self.embed = executor.projection(Affine(kernel))
        layer = replace(layer_of(shape), activation="quick_gelu")
        spec = TransformerSpec((layer,) * shape.depth)
        self.layers = executor.transformer(spec, Stack(spec, weights, NAMES))
        joined = shape.hidden * shape.merge**2
        self.merger = PatchMerger(
            weights.scope("merger"), executor, joined, joined, shape.out, normed=shape.hidden, names=MERGER
        )

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See `Tower`: [1, tokens, out], since nothing is added to the language model's layers."""
        device, dtype = self.executor.device, self.executor.dtype
        x = self.embed(pixels.to(device, dtype))
        positions = torch.cat([coordinates(grid, self.merge, device) for grid in grids], 1)
        return self.merger(self.layers(x, separate_layout(steps(grids)), positions).to(dtype))[None]
