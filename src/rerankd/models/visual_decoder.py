"""A language model with a vision tower: the common part of the families that see images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch
from rerankd.layers.spec import TransformerSpec
from rerankd.layers.transformer import Additions, Transformer
from rerankd.models.base import TokenIds, layout_of, tokens_of
from rerankd.models.checkpoint.config import Config
from rerankd.models.checkpoint.json_files import shown
from rerankd.models.decoders import head_dim_of
from rerankd.models.grids import visual_positions
from rerankd.models.heads import Head
from rerankd.models.visual_encoder import VisualEncoder


@dataclass(frozen=True, slots=True)
class VisualDecoder:
    """A language model, of plain positions or of those in time, height and width.

    placeholders: the ids of the tokens in whose place visuals are seen
    """

    spec: TransformerSpec
    transformer: Transformer
    head: Head
    visuals: VisualEncoder
    placeholders: tuple[int, ...]

    @property
    def shares_prefix(self) -> bool:
        """See `Model`."""
        return self.spec.causal

    def __call__(self, batch: PackedBatch) -> Tensor:
        """See `Model`."""
        rotary = self.spec.layers[0].rotary
        is_plain = rotary is not None and not rotary.axes
        if not batch.visuals:
            positions = batch.positions if is_plain else batch.positions.expand(3, -1)
            states = self.transformer(tokens_of(batch), layout_of(batch, self.spec), positions, self.head.rows(batch))
            return self.head(states, batch)
        is_visual = torch.isin(batch.token_ids, torch.tensor(self.placeholders, device=batch.token_ids.device))
        positions = batch.positions
        if not is_plain:
            positions = visual_positions(batch, is_visual.tolist(), self.visuals.merge).to(batch.token_ids.device)
        rows = is_visual.nonzero()[:, 0]
        features = self.visuals(batch.visuals)
        x = self.transformer.embed(tokens_of(batch))
        x[rows] = features[0]
        # An addition behind the last layer would reach no row that the head reads.
        additions = Additions(rows, list(features[1 : len(self.spec.layers)]))
        states = self.transformer(x, layout_of(batch, self.spec), positions, self.head.rows(batch), additions)
        return self.head(states, batch)


def rotary_sections(config: Config) -> tuple[int, int, int]:
    """`mrope_section`: how many pairs of a head turn by time, by height and by width. ModelError where they do not add
    up."""
    sections, half = config.rotary().get("mrope_section"), head_dim_of(config) // 2
    numbers = sections if isinstance(sections, list) and all(type(number) is int for number in sections) else []
    if len(numbers) != 3 or sum(numbers) != half or min(numbers) < 0:
        raise ModelError(
            f"{config.source}: `mrope_section` is {shown(sections)}; three numbers of sum {half} are needed."
        )
    return numbers[0], numbers[1], numbers[2]


def placeholder(config: Config, kind: str, token_id: TokenIds) -> int:
    """The id of the tokens in whose place an image or a video is seen, of which prompts are made by name."""
    token = token_id(f"<|{kind}_pad|>")
    if config.size(f"{kind}_token_id", token, least=0) != token:
        raise config.wrong(f"{kind}_token_id", f"must be {token}, the tokenizer's <|{kind}_pad|>")
    return token
