"""The vision tower of llama-nemotron-rerank-vl: SigLIP 2 (Tschannen et al., 2025) over square tiles, and a projection.

Behaviour reference: `SiglipVisionModel` in transformers, and `extract_feature` of nvidia's
`modeling_llama_nemotron_vl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rerankd.layers.layout import separate_layout
from rerankd.layers.spec import Affine
from rerankd.layers.transformer import Executor
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.grids import Grid, in_merge_order, steps
from rerankd.models.patch_merger import MergerNames, PatchMerger
from rerankd.models.siglip_shape import CHANNELS, SiglipShape
from rerankd.models.stack import LayerNames, Stack

NAMES = LayerNames(
    layer="encoder.layers.{}",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    attention_norm="layer_norm1",
    mlp_norm="layer_norm2",
)
MERGER = MergerNames("0", "1", "3")
MERGER_EPSILON = 1e-5


class SiglipTower:
    """Patch embedding, learned positions, layers in which each tile attends to itself, a norm, and the projection.

    The pooling head that a checkpoint may have is not read.
    """

    def __init__(self, config: Config, weights: Weights, merger: Weights, out: int, executor: Executor) -> None:
        """config: of the whole model; out: the width of the language model"""
        shape, vision = SiglipShape.of(config), config.section("vision_config")
        spec, norm = shape.spec, shape.spec.final_norm
        assert norm is not None
        embedding = "embeddings.patch_embedding.weight"
        weights.expect_size(vision, "hidden_size", spec.hidden, embedding)
        weights.expect_size(vision, "patch_size", shape.patch, embedding, axis=3)
        weights.expect_size(vision, "image_size", shape.side, "embeddings.position_embedding.weight", each=shape.side)
        weights.expect_count(vision, "num_hidden_layers", len(spec.layers), "encoder.layers")
        weights.expect_size(vision, "intermediate_size", spec.layers[0].mlp, "encoder.layers.0.mlp.fc1.weight")
        joined = spec.hidden * shape.merge**2
        self.executor, self.merge = executor, shape.merge
        # A convolution whose stride is its kernel is a GEMM with each flattened patch.
        kernel = weights.tensor(embedding, spec.hidden, CHANNELS, shape.patch, shape.patch).flatten(1)
        bias = weights.tensor("embeddings.patch_embedding.bias", spec.hidden)
        self.embed = executor.projection(Affine(kernel, bias))
        places = weights.tensor("embeddings.position_embedding.weight", shape.side**2, spec.hidden)
        self.positions = in_merge_order(places.view(shape.side, shape.side, spec.hidden), shape.merge)
        stack = Stack(spec, weights, NAMES, final_norm=weights.norm("post_layernorm", spec.hidden, norm))
        self.layers = executor.transformer(spec, stack)
        self.merger = PatchMerger(merger, executor, joined, out, out, names=MERGER, epsilon=MERGER_EPSILON)

    def __call__(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See `Tower`: [1, tokens, out]. The steps in time of a grid are tiles."""
        device, dtype = self.executor.device, self.executor.dtype
        tiles = separate_layout(steps(grids))
        x = self.embed(pixels.to(device, dtype)) + self.positions.repeat(len(tiles.blocks), 1)
        return self.merger(self.layers(x, tiles, None).to(dtype))[None]
