"""Qwen3-VL-Reranker: a Qwen3 decoder that sees images and videos, asked for "yes" or "no".

Behaviour reference: `modeling_qwen3_vl.py` in transformers and the authors' `qwen3_vl_reranker.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rerankd.core import ModelError, PackedBatch, Visual
from rerankd.layers.rotary import Rotary, Rotation
from rerankd.models.base import TokenIds
from rerankd.models.config import Config, shown
from rerankd.models.qwen3 import Deepstack, Qwen3Decoder, Qwen3Shape, relevance_head
from rerankd.models.qwen3_vl_vision import Grid, VisionTower
from rerankd.models.vocabulary import answers, vocabulary_head
from rerankd.models.weights import Weights

PATCHES_AT_ONCE = 16384
"""Patches that go through the vision tower together, but for a single picture of more: bounds what its layers hold."""
MEMORY_BYTES = 256 << 20
"""Encoded images and videos that are kept for other documents and batches."""


class Qwen3VLReranker:
    """`Qwen3VLForConditionalGeneration` by its yes/no logits, `Qwen3VLForSequenceClassification` by its score rows."""

    def __init__(self, config: Config, weights: Weights, token_id: TokenIds) -> None:
        text, seen = config.section("text_config"), config.section("vision_config")
        shape = Qwen3Shape.of(text)
        base = weights.scope_holding("embed_tokens.weight", "model.language_model", "language_model", "model")
        shape.expect_in(text, base)
        if seen.size("out_hidden_size") != shape.hidden:
            raise seen.wrong("out_hidden_size", f"must be the text's `hidden_size` ({shape.hidden})")
        self.placeholders = [_placeholder(config, kind, token_id) for kind in ("image", "video")]
        self.decoder = Qwen3Decoder(shape, base)
        self.head, self.activation = relevance_head(config, weights, base, shape.hidden, token_id)
        self.vocabulary = vocabulary_head(config, weights, self.decoder.embedding)
        vision = weights.scope_holding("patch_embed.proj.weight", "model.visual", "visual")
        self.visuals = VisualEncoder(VisionTower(seen, vision))
        self.rotary = InterleavedRotary(text, shape, weights)

    def __call__(self, batch: PackedBatch) -> Tensor:
        x = self.decoder.embed(batch)
        deepstack = None
        is_visual = torch.isin(batch.token_ids, torch.tensor(self.placeholders, device=x.device))
        rows = is_visual.nonzero()[:, 0]
        if len(rows):
            features = self.visuals(batch.visuals)
            x[rows] = features[0]
            deepstack = Deepstack(rows, list(features[1:]))
        positions = visual_positions(batch, is_visual.tolist(), self.visuals.merge).to(x.device)
        states = self.decoder(x, self.rotary(positions), batch, deepstack)
        return answers(states, self.head, self.vocabulary, batch)


class VisualEncoder:
    """The vision tower, with a bounded memory of what it has encoded, by content.

    The memory changes no result: it spares encoding a query's image again for each batch of its documents, and
    a picture again that stands in several documents.
    """

    def __init__(self, tower: VisionTower) -> None:
        self.tower = tower
        self.merge = tower.shape.merge
        self._memory: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, visuals: Sequence[Visual]) -> Tensor:
        """[1 + deepstack layers, tokens of all, hidden]; see `VisionTower`."""
        encoded = {visual.digest: self._memory.get(visual.digest) for visual in visuals}
        missing = {visual.digest: visual for visual in visuals if encoded[visual.digest] is None}
        for pack in _packs(list(missing.values())):
            features = self._encode(torch.cat([visual.pixel_values() for visual in pack]), [v.grid for v in pack])
            sizes = [_patches(visual) // self.merge**2 for visual in pack]
            encoded |= zip((v.digest for v in pack), torch.split(features, sizes, dim=1), strict=True)
        found = [feature for visual in visuals if (feature := encoded[visual.digest]) is not None]
        self._remember({visual.digest: feature for visual, feature in zip(visuals, found, strict=True)})
        return torch.cat(found, dim=1)

    def _encode(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """A long video goes through the tower in parts: its steps in time know nothing of each other there."""
        time, height, width = grids[0]
        steps = max(1, PATCHES_AT_ONCE // (height * width))
        if len(grids) > 1 or time <= steps:
            return self.tower(pixels, grids)
        parts = torch.split(pixels, steps * height * width)
        encoded = [self.tower(part, [(len(part) // (height * width), height, width)]) for part in parts]
        return torch.cat(encoded, dim=1)

    def _remember(self, features: dict[bytes, Tensor]) -> None:
        for digest, feature in features.items():
            # A slice would keep all that was encoded beside it alive.
            self._memory.setdefault(digest, feature.clone())
            self._memory.move_to_end(digest)
        while sum(feature.nbytes for feature in self._memory.values()) > MEMORY_BYTES:
            self._memory.popitem(last=False)


class InterleavedRotary:
    """Rotary positions in three dimensions (time, height, width), dealt to a head's pairs in turn.

    `mrope_section` says how many pairs each dimension gets: height every third from 1 on, width every third from
    2 on, each until it has its number; time the others.
    """

    def __init__(self, config: Config, shape: Qwen3Shape, weights: Weights) -> None:
        sections = config.rotary().get("mrope_section")
        half = shape.head_dim // 2
        numbers = sections if isinstance(sections, list) and all(type(number) is int for number in sections) else []
        if len(numbers) != 3 or sum(numbers) != half or min(numbers) < 0 or max(numbers[1:]) > half // 3:
            raise ModelError(
                f"{config.source}: `mrope_section` is {shown(sections)}; three numbers of sum {half} are needed, the "
                f"last two at most {half // 3}."
            )
        runtime = weights.runtime
        self.rotary = Rotary(shape.rope, shape.head_dim, runtime.device, runtime.dtype)
        self.dimension = torch.zeros(half, dtype=torch.int64, device=runtime.device)
        for dimension in (1, 2):
            self.dimension[dimension : numbers[dimension] * 3 : 3] = dimension

    def __call__(self, positions: Tensor) -> Rotation:
        """positions: int64 [3, T]."""
        return self.rotary.turn(positions.float()[self.dimension].T.contiguous() * self.rotary.frequencies)


def _placeholder(config: Config, kind: str, token_id: TokenIds) -> int:
    """The id of the tokens in whose place an image or a video is seen, of which prompts are made by name."""
    found, named = config.size(f"{kind}_token_id", least=0), token_id(f"<|{kind}_pad|>")
    if found != named:
        raise config.wrong(f"{kind}_token_id", f"must be {named}, the tokenizer's <|{kind}_pad|>")
    return found


def visual_positions(batch: PackedBatch, is_visual: Sequence[bool], merge: int) -> Tensor:
    """Positions in time, height and width of every packed token: int64 [3, T].

    A text token has three equal positions, one more than what came before. The tokens of an image, or of one
    step in time of a video, share a time and lie in a grid from there; what follows begins behind the longer
    side of the grid. A suffix continues from its prefix.
    """
    positions = torch.empty(3, len(is_visual), dtype=torch.int64)
    steps = _token_grids(batch.visuals, merge)

    def lay(row: int, stop: int, position: int) -> int:
        while row < stop:
            if is_visual[row]:
                height, width = next(steps)
                own = positions[:, row : row + height * width].view(3, height, width)
                own[0] = position
                own[1] = position + torch.arange(height)[:, None]
                own[2] = position + torch.arange(width)[None, :]
                row += height * width
                position += max(height, width)
            else:
                end = next((i for i in range(row, stop) if is_visual[i]), stop)
                positions[:, row:end] = torch.arange(position, position + end - row)
                position += end - row
                row = end
        return position

    for group in batch.groups:
        behind = lay(group.prefix.start, group.prefix.stop, 0)
        for suffix in group.suffixes:
            lay(suffix.start, suffix.stop, behind)
    return positions


def _token_grids(visuals: Sequence[Visual], merge: int) -> Iterator[tuple[int, int]]:
    """Height and width in tokens of each step in time of each visual."""
    for visual in visuals:
        time, height, width = visual.grid
        for _ in range(time):
            yield height // merge, width // merge


def _patches(visual: Visual) -> int:
    time, height, width = visual.grid
    return time * height * width


def _packs(visuals: Sequence[Visual]) -> Iterator[list[Visual]]:
    """Consecutive visuals of at most PATCHES_AT_ONCE patches together; a larger one by itself."""
    pack: list[Visual] = []
    for visual in visuals:
        if pack and sum(map(_patches, [*pack, visual])) > PATCHES_AT_ONCE:
            yield pack
            pack = []
        pack.append(visual)
    if pack:
        yield pack
