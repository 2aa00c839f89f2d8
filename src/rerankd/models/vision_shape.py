"""The sizes of the vision towers of Qwen's models, and their layers.

The sizes of Qwen3-VL are read from its configuration here, and compared with its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rerankd.layers.rotary import Rotary, geometric
from rerankd.layers.spec import LayerSpec, Norm
from rerankd.media.visual import VisionFormat
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights

NORM = Norm("layer", 1e-6)
THETA = 10000.0


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The sizes of a vision tower.

    positions: the number of learned positions; 0 for none
    deepstack: the layers behind which a merger reads the states
    """

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
        depth = config.layers("depth")
        layers = config.entries.get("deepstack_visual_indexes") or []
        if not isinstance(layers, list) or not all(type(layer) is int and 0 <= layer < depth for layer in layers):
            raise config.wrong("deepstack_visual_indexes", f"must be a list of layers, from 0 to {depth - 1}")
        if layers != sorted(set(layers)):
            raise config.wrong("deepstack_visual_indexes", "must rise")
        return cls(
            hidden=config.size("hidden_size"),
            depth=depth,
            heads=expect_heads(config, "hidden_size"),
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
        self.expect_patches(config, "hidden_size", weights)
        weights.expect_size(config, "num_position_embeddings", self.positions, "pos_embed.weight")
        weights.expect_count(config, "depth", self.depth, "blocks")
        weights.expect_size(config, "intermediate_size", self.mlp, "blocks.0.mlp.linear_fc1.weight")
        merger = "merger.linear_fc1.weight"
        weights.expect_size(config, "spatial_merge_size", self.merge, merger, axis=1, each=self.merge * self.hidden)
        weights.expect_size(config, "out_hidden_size", self.out, "merger.linear_fc2.weight")
        weights.expect_count(config, "deepstack_visual_indexes", len(self.deepstack), "deepstack_merger_list")

    def images(self, config: Config) -> VisionFormat:
        """See `Architecture.images`. ModelError where the image processor beside config.json disagrees."""
        form = VisionFormat.from_folder(Path(config.source).parent)
        for key, tower_size, processor_size in (
            ("patch_size", self.patch, form.patch_size),
            ("temporal_patch_size", self.temporal_patch, form.temporal_patch_size),
            ("spatial_merge_size", self.merge, form.merge_size),
        ):
            if tower_size != processor_size:
                raise config.section("vision_config").wrong(
                    key, f"must be the image processor's own ({processor_size})"
                )
        return form

    def expect_patches(self, config: Config, hidden: str, weights: Weights) -> None:
        """Refuse an embedding of patches of other sizes; `hidden` is the entry that says how wide it is."""
        for axis, (key, size) in enumerate(
            (
                (hidden, self.hidden),
                ("in_channels", self.channels),
                ("temporal_patch_size", self.temporal_patch),
                ("patch_size", self.patch),
            )
        ):
            weights.expect_size(config, key, size, "patch_embed.proj.weight", axis=axis)


def expect_heads(config: Config, hidden: str) -> int:
    """The heads of a tower whose width is the entry `hidden`. ModelError where they do not divide that."""
    width, heads = config.size(hidden), config.size("num_heads")
    # Half of a head's pairs turn by a patch's row, the other half by its column.
    if width % (4 * heads):
        raise config.wrong("num_heads", f"must divide `{hidden}` ({width}) into multiples of 4")
    return heads


def layer_of(shape: VisionShape) -> LayerSpec:
    """A layer of the tower: every image, or pair of frames, attends to itself."""
    head_dim = shape.hidden // shape.heads
    pairs = head_dim // 4
    # Half of a head's pairs turn by a patch's row, the other half by its column.
    rotary = Rotary(geometric(head_dim // 2, THETA) * 2, axes=(0,) * pairs + (1,) * pairs)
    return LayerSpec(
        hidden=shape.hidden,
        heads=shape.heads,
        head_dim=head_dim,
        mlp=shape.mlp,
        norm=NORM,
        placement="pre",
        activation="gelu_tanh",
        causal=False,
        rotary=rotary,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
