"""Qwen3-VL-Reranker: a Qwen3 decoder that sees images and videos, asked for "yes" or "no".

Behaviour reference: `modeling_qwen3_vl.py` in transformers and the authors' `qwen3_vl_reranker.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.layers.rotary import Rotary
from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Additions, Executor, Transformer
from rerankd.models.answers import token_head
from rerankd.models.architecture import Architecture, plain_positions
from rerankd.models.base import TokenIds, layout_of, tokens_of
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.decoders import decoder, expect_in, head_dim_of
from rerankd.models.grids import visual_positions
from rerankd.models.heads import TokenHead
from rerankd.models.qwen3 import spec_of
from rerankd.models.qwen3_vl_vision import VisionTower
from rerankd.models.recipes.qwen3 import QWEN3_VL_RERANKER
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.visual_encoder import VisualEncoder


@dataclass(frozen=True, slots=True)
class Qwen3VLModel:
    """A decoder with a vision tower. `placeholders` are the ids of the tokens in whose place visuals are seen."""

    spec: TransformerSpec
    transformer: Transformer
    head: TokenHead
    visuals: VisualEncoder
    placeholders: tuple[int, ...]

    @property
    def shares_prefix(self) -> bool:
        """See `Model`."""
        return self.spec.causal

    def __call__(self, batch: PackedBatch) -> Tensor:
        """See `Model`."""
        if not batch.visuals:
            positions = batch.positions.expand(3, -1)
            states = self.transformer(tokens_of(batch), layout_of(batch, self.spec), positions, self.head.rows(batch))
            return self.head(states, batch)
        is_visual = torch.isin(batch.token_ids, torch.tensor(self.placeholders, device=batch.token_ids.device))
        positions = visual_positions(batch, is_visual.tolist(), self.visuals.merge).to(batch.token_ids.device)
        rows = is_visual.nonzero()[:, 0]
        features = self.visuals(batch.visuals)
        x = self.transformer.embed(tokens_of(batch))
        x[rows] = features[0]
        # What would be added behind the last layer reaches no row that the head reads.
        additions = Additions(rows, list(features[1 : len(self.spec.layers)]))
        states = self.transformer(x, layout_of(batch, self.spec), positions, self.head.rows(batch), additions)
        return self.head(states, batch)


def qwen3_vl_reranker(
    config: Config, weights: Weights, token_id: TokenIds, executor: Executor, recipe: Recipe
) -> Qwen3VLModel:
    """`Qwen3VLForConditionalGeneration` by its yes/no logits, `Qwen3VLForSequenceClassification` by its score rows."""
    text, seen = config.section("text_config"), config.section("vision_config")
    base = weights.scope_holding("embed_tokens.weight", "model.language_model", "language_model", "model")
    expect_in(text, base)
    if seen.size("out_hidden_size") != text.size("hidden_size"):
        raise seen.wrong("out_hidden_size", f"must be the text's `hidden_size` ({text.size('hidden_size')})")
    stack = decoder(text, base, spec_of(text, interleaved_rotary(text)))
    vision = weights.scope_holding("patch_embed.proj.weight", "model.visual", "visual")
    return Qwen3VLModel(
        spec=stack.spec,
        head=token_head(config, weights, base, stack, token_id, recipe),
        transformer=executor.transformer(stack.spec, stack),
        visuals=VisualEncoder(VisionTower(seen, vision, executor)),
        placeholders=tuple(_placeholder(config, kind, token_id) for kind in ("image", "video")),
    )


def interleaved_rotary(config: Config) -> Rotary:
    """Rotary positions in three dimensions (time, height, width), dealt to a head's pairs in turn.

    `mrope_section` says how many pairs each dimension gets: height every third from 1 on, width every third from
    2 on, each until it has its number; time the others.
    """
    rope, sections, width = config.rope(), config.rotary().get("mrope_section"), head_dim_of(config)
    half = width // 2
    numbers = sections if isinstance(sections, list) and all(type(number) is int for number in sections) else []
    if len(numbers) != 3 or sum(numbers) != half or min(numbers) < 0 or max(numbers[1:]) > half // 3:
        raise ModelError(
            f"{config.source}: `mrope_section` is {shown(sections)}; three numbers of sum {half} are needed, the "
            f"last two at most {half // 3}."
        )
    axes = [0] * half
    for axis in (1, 2):
        axes[axis : numbers[axis] * 3 : 3] = [axis] * numbers[axis]
    return rope.rotary(width, tuple(axes))


def _placeholder(config: Config, kind: str, token_id: TokenIds) -> int:
    """The id of the tokens in whose place an image or a video is seen, of which prompts are made by name."""
    found, named = config.size(f"{kind}_token_id", least=0), token_id(f"<|{kind}_pad|>")
    if found != named:
        raise config.wrong(f"{kind}_token_id", f"must be {named}, the tokenizer's <|{kind}_pad|>")
    return found


QWEN3_VL = Architecture(
    ("qwen3_vl",),
    (QWEN3_VL_RERANKER,),
    qwen3_vl_reranker,
    positions=lambda config: plain_positions(config.section("text_config")),
    spec=lambda config: spec_of(text := config.section("text_config"), interleaved_rotary(text)),
)
