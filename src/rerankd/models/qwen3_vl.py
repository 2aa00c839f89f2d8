"""Qwen3-VL-Reranker: a Qwen3 decoder that sees images and videos, asked for "yes" or "no".

Behaviour reference: `modeling_qwen3_vl.py` in transformers and the authors' `qwen3_vl_reranker.py`.
"""

from __future__ import annotations

from rerankd.core import ModelError
from rerankd.layers.rotary import Rotary
from rerankd.layers.transformer import Executor
from rerankd.models.answers import token_head
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import decoder, expect_in, head_dim_of
from rerankd.models.qwen3 import spec_of
from rerankd.models.qwen3_vl_vision import VisionTower
from rerankd.models.recipes.qwen3 import QWEN3_VL_RERANKER
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.vision_shape import VisionShape
from rerankd.models.visual_decoder import VisualDecoder, placeholder, rotary_sections
from rerankd.models.visual_encoder import VisualEncoder


def qwen3_vl_reranker(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> VisualDecoder:
    """`Qwen3VLForConditionalGeneration` by its yes/no logits, `Qwen3VLForSequenceClassification` by its score rows."""
    text, vision_config = config.section("text_config"), config.section("vision_config")
    base = weights.scope_holding("embed_tokens.weight", "model.language_model", "language_model", "model")
    expect_in(text, base)
    if vision_config.size("out_hidden_size") != text.size("hidden_size"):
        raise vision_config.wrong("out_hidden_size", f"must be the text's `hidden_size` ({text.size('hidden_size')})")
    stack = decoder(text, base, spec_of(text, interleaved_rotary(text)))
    vision = weights.scope_holding("patch_embed.proj.weight", "model.visual", "visual")
    return VisualDecoder(
        spec=stack.spec,
        head=token_head(config, weights, base, stack, token_id, recipe),
        transformer=executor.transformer(stack.spec, stack),
        visuals=VisualEncoder(VisionTower(vision_config, vision, executor)),
        placeholders=tuple(placeholder(config, kind, token_id) for kind in ("image", "video")),
    )


def interleaved_rotary(config: Config) -> Rotary:
    """Rotary positions in three dimensions (time, height, width), dealt to a head's pairs in turn.

    `mrope_section` says how many pairs each dimension gets: height every third from 1 on, width every third from
    2 on, each until it has its number; time the others.
    """
    rope, sections, width = config.rope(), rotary_sections(config), head_dim_of(config)
    half = width // 2
    if max(sections[1:]) > half // 3:
        raise ModelError(
            f"{config.source}: `mrope_section` is {shown(list(sections))}; the last two must be at most {half // 3}."
        )
    axes = [0] * half
    for axis in (1, 2):
        axes[axis : sections[axis] * 3 : 3] = [axis] * sections[axis]
    return rope.rotary(width, tuple(axes))


QWEN3_VL = Architecture(
    ("qwen3_vl",),
    (QWEN3_VL_RERANKER,),
    qwen3_vl_reranker,
    positions=lambda config: plain_positions(config.section("text_config")),
    spec=lambda config: spec_of(text := config.section("text_config"), interleaved_rotary(text)),
    images=lambda config: VisionShape.of(config.section("vision_config")).images(config),
)
