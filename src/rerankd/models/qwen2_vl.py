"""jina-reranker-m0: a Qwen2-VL decoder (Wang et al., 2024) that sees images, and two linear layers at its last token.

Behaviour reference: `modeling_qwen2_vl.py` in transformers, and `JinaVLForRanking` in `modeling.py` of
jinaai/jina-reranker-m0, which is not run.
"""

from __future__ import annotations

import torch

from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import Affine, TransformerSpec
from rerankd.layers.transformer import Executor
from rerankd.models import qwen2
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TokenIds
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import decoder, expect_in, head_dim_of
from rerankd.models.labels import declared_activation
from rerankd.models.pooling import Pooling
from rerankd.models.qwen2_vl_vision import VisionTower, shape_of
from rerankd.models.recipes.jina import JINA_RERANKER_M0
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.sequential import SequentialHead
from rerankd.models.steps import SCORES, Linear, Steps
from rerankd.models.visual_decoder import VisualDecoder, placeholder, rotary_sections
from rerankd.models.visual_encoder import VisualEncoder


def text_of(config: Config) -> Config:
    """The entries of the language model, which the published folder has beside all others."""
    text = config if config.entries.get("text_config") is None else config.section("text_config")
    return Config({"rms_norm_eps": 1e-5, **text.entries}, text.source)


def spec_of(config: Config) -> TransformerSpec:
    """The decoder that a configuration describes: Qwen2's, whose heads turn by time, height and width."""
    text = text_of(config)
    return qwen2.spec_of(text, sectioned_rotary(text))


def sectioned_rotary(config: Config) -> Rotary:
    """Rotary positions in three dimensions: the first pairs of a head turn by time, then some by height, then some by
    width."""
    rope = config.rope()
    if config.rotary().get("mrope_interleaved"):
        raise config.wrong("rope_parameters", "must not have `mrope_interleaved`")
    axes = tuple(axis for axis, pairs in enumerate(rotary_sections(config)) for _ in range(pairs))
    return rope.rotary(head_dim_of(config), axes)


def jina_reranker_m0(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> VisualDecoder:
    """`JinaVLForRanking`."""
    text, vision_config = text_of(config), config.section("vision_config")
    base = weights.scope_holding("embed_tokens.weight", "model.language_model", "model")
    expect_in(text, base)
    stack = decoder(text, base, spec_of(config))
    hidden = stack.spec.hidden
    if vision_config.size("hidden_size", hidden) != hidden:
        raise vision_config.wrong("hidden_size", f"must be the text's ({hidden})")
    vision = weights.scope_holding("patch_embed.proj.weight", "model.visual", "visual")
    first = weights.affine("score.0", hidden, hidden, True, torch.float32)
    second = weights.affine("score.2", 1, hidden, True, torch.float32)
    assert second.bias is not None
    scores = Linear(Affine(second.weight, second.bias - recipe.logit_bias))
    return VisualDecoder(
        spec=stack.spec,
        head=SequentialHead(
            Pooling(("lasttoken",)),
            Steps((Linear(first, "relu"), scores), 1, SCORES),
            declared_activation(config, 1),
        ),
        transformer=executor.transformer(stack.spec, stack),
        visuals=VisualEncoder(VisionTower(vision_config, vision, executor)),
        placeholders=(placeholder(config, "image", token_id),),
    )


JINA_M0 = Architecture(
    ("qwen2_vl",),
    (JINA_RERANKER_M0,),
    jina_reranker_m0,
    positions=lambda config: plain_positions(text_of(config)),
    spec=spec_of,
    images=lambda config: shape_of(config.section("vision_config")).images(config),
)
