"""The vision-language model in packed batches against transformers, one pair at a time, on the same patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
import transformers
from torch import Tensor

from rerankd.backends.select import place
from rerankd.core import PromptGroup, Segment
from rerankd.engine.engine import Engine
from rerankd.models.checkpoint.config import read_config
from rerankd.models.checkpoint.tensors import Checkpoint
from rerankd.models.checkpoint.weights import Weights
from rerankd.models.registry import find_architecture
from rerankd.models.visual_encoder import VisualEncoder

IMAGE, VIDEO, START, END = 151655, 151656, 151652, 151653
TOKENS = {"no": 2152, "yes": 9693, "<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO}
TIME = [27, 16, 13, 15, 6486, 29]  # some text before each pair of frames


@dataclass(frozen=True)
class Patches:
    """Random patches in place of a picture."""

    grid: tuple[int, int, int]
    seed: int
    placeholder: int = IMAGE

    @property
    def digest(self) -> bytes:
        return repr((self.grid, self.seed)).encode()

    def pixel_values(self) -> Tensor:
        time, height, width = self.grid
        return torch.randn(time * height * width, 1536, generator=torch.Generator().manual_seed(self.seed))

    def token_ids(self) -> list[int]:
        time, height, width = self.grid
        step = [START, *[self.placeholder] * (height * width // 4), END]
        return (TIME + step) * time if self.placeholder == VIDEO else step


def segment(*parts: int | Patches) -> Segment:
    """Random text of a length, or patches, one after another."""
    random = Random(repr(parts))
    ids: list[int] = []
    for part in parts:
        ids += part.token_ids() if isinstance(part, Patches) else [random.randrange(150_000) for _ in range(part)]
    return Segment(ids, visuals=tuple(part for part in parts if isinstance(part, Patches)))


WIDE, TALL, TINY = Patches((1, 4, 6), 1), Patches((1, 10, 4), 2), Patches((1, 2, 2), 3)
FILM, SHORT = Patches((3, 4, 4), 4, VIDEO), Patches((2, 6, 2), 5, VIDEO)
GROUPS = [
    (segment(9, WIDE, 4), [segment(5), segment(TALL, 3), segment(2, WIDE, 1, TINY, 4), segment(FILM, 3)]),
    (segment(12), [segment(7), segment(TINY, 2), segment(2, FILM, WIDE, 5), segment(3, SHORT, TALL, 2)]),
    (segment(3, SHORT, 2), [segment(4), segment(WIDE, 2)]),
    (segment(6), [segment(8), segment(3)]),
]


def load(folder: Path, budget: int) -> Engine:
    placement = place("cpu", "float32")
    config = read_config(folder, {})
    _, architecture = find_architecture(config)
    weights = Weights(Checkpoint(folder), placement.device, placement.dtype)
    model = architecture.load(config, weights, TOKENS.__getitem__, placement, architecture.recipes[0])
    weights.finish()
    return Engine(model, placement.device, budget)


@torch.inference_mode()
def expected(folder: Path) -> list[list[float]]:
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def logit(prefix: Segment, suffix: Segment) -> float:
        ids = torch.tensor([prefix.token_ids + suffix.token_ids])
        visuals = [v for s in (prefix, suffix) for v in s.visuals if isinstance(v, Patches)]
        inputs: dict[str, Tensor] = {}
        for placeholder, pixels, grid in (
            (IMAGE, "pixel_values", "image_grid_thw"),
            (VIDEO, "pixel_values_videos", "video_grid_thw"),
        ):
            own = [visual for visual in visuals if visual.placeholder == placeholder]
            if own:
                inputs |= {
                    pixels: torch.cat([visual.pixel_values() for visual in own]),
                    grid: torch.tensor([visual.grid for visual in own]),
                }
        kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **inputs).logits
        return float(logits[0, -1, 9693] - logits[0, -1, 2152])

    return [[logit(prefix, suffix) for suffix in suffixes] for prefix, suffixes in GROUPS]


def scored(engine: Engine) -> list[list[float]]:
    groups = [PromptGroup(prefix, tuple(suffixes), (False,) * len(suffixes)) for prefix, suffixes in GROUPS]
    return [future.result(60) for future in [engine.submit(group) for group in groups]]


def largest_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    return max(abs(x - y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize("budget", [10_000, 60, 1])
def test_logits_equal_transformers(qwen3_vl_checkpoint: Path, budget: int) -> None:
    reference = expected(qwen3_vl_checkpoint)
    flat = [logit for logits in reference for logit in logits]
    assert max(flat) - min(flat) > 0.5
    engine = load(qwen3_vl_checkpoint, budget)
    try:
        assert largest_difference(scored(engine), reference) < 1e-4
    finally:
        engine.close()


def test_each_picture_is_encoded_once(qwen3_vl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(qwen3_vl_checkpoint, 60)
    encoder = engine.model.visuals  # type: ignore[attr-defined]
    assert isinstance(encoder, VisualEncoder)
    grids: list[tuple[int, int, int]] = []
    tower = encoder.tower

    def counted(pixels: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
        grids.extend(shapes)
        return tower(pixels, shapes)

    monkeypatch.setattr(encoder, "tower", counted)
    first = scored(engine)
    assert sorted(grids) == sorted(patches.grid for patches in (WIDE, TALL, TINY, FILM, SHORT))
    assert largest_difference(scored(engine), first) < 1e-5
    assert len(grids) == 5
    engine.close()


def test_pictures_go_through_the_tower_together(qwen3_vl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(qwen3_vl_checkpoint, 10_000)
    encoder = engine.model.visuals  # type: ignore[attr-defined]
    calls: list[list[tuple[int, int, int]]] = []
    tower = encoder.tower

    def counted(pixels: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
        calls.append(list(shapes))
        return tower(pixels, shapes)

    monkeypatch.setattr(encoder, "tower", counted)
    documents = [segment(TALL, 3), segment(2, WIDE, 1, TINY), segment(4, TALL), segment(FILM, 2)]
    engine.submit(PromptGroup(segment(9), tuple(documents), (False,) * 4)).result(60)
    assert calls == [[TALL.grid, WIDE.grid, TINY.grid, FILM.grid]]
    engine.close()


def test_a_long_video_is_encoded_in_parts(qwen3_vl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(qwen3_vl_checkpoint, 10_000)
    encoder = engine.model.visuals  # type: ignore[attr-defined]
    engine.close()
    visuals = [Patches((5, 4, 6), 7, VIDEO), WIDE]
    with torch.inference_mode():
        whole = VisualEncoder(encoder.tower)(visuals)
        monkeypatch.setattr("rerankd.models.visual_encoder.PATCHES_AT_ONCE", 50)
        lengths: list[int] = []
        tower = encoder.tower

        def counted(pixels: Tensor, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
            lengths.append(len(pixels))
            return tower(pixels, shapes)

        monkeypatch.setattr(encoder, "tower", counted)
        parts = encoder(visuals)
    assert lengths == [48, 48, 24, 24]
    assert torch.allclose(parts, whole, atol=1e-5)


def test_what_is_remembered_is_bounded(qwen3_vl_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankd.models.visual_encoder.MEMORY_BYTES", 40_000)
    engine = load(qwen3_vl_checkpoint, 10_000)
    scored(engine)
    memory = engine.model.visuals._memory  # type: ignore[attr-defined]
    assert 0 < sum(feature.untyped_storage().nbytes() for feature in memory.values()) <= 40_000
    engine.close()
