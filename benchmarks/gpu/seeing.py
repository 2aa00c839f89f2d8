"""Qwen3-VL: pairs of text, and documents that are a picture, by random weights and random pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch

from benchmarks.gpu import shapes
from benchmarks.gpu.batches import packed, tokens, uniform
from benchmarks.gpu.models import BUDGET, ours, request
from benchmarks.gpu.timing import Bench
from rerankd.core import PromptGroup, Segment
from rerankd.media.visual import ResizedVisual, VisionFormat
from rerankd.models.base import Model

FORMAT = VisionFormat(16, 2, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255)
SIDE, SMALL_SIDE = 512, 64
"""Pixels of a picture's side: 256 tokens, and 4."""


def vision(bench: Bench) -> None:
    """Pairs a second: of 265 tokens of text, and of documents that are a picture and a few words."""
    side = SMALL_SIDE if bench.small else SIDE
    each = (side // 32) ** 2
    fill = 2 if bench.small else BUDGET // each // 2
    for shape in shapes.SEEING_SMALL if bench.small else shapes.SEEING_FULL:
        if not bench.small and bench.wanted and shape.name not in bench.wanted:
            continue
        model = shapes.load(shape, ours(bench))
        texts = request(bench, model, uniform(2 if bench.small else (BUDGET - 95) // 170))
        measure(bench, shape, model, "text", lambda seed: texts, 0)  # noqa: B023 - called at once
        # New pictures for each batch: the model remembers those that it has seen.
        measure(bench, shape, model, "pictures", lambda seed: pictures(fill, side, seed), each)
        del model
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def pictures(documents: int, side: int, seed: int) -> PromptGroup:
    """Documents of a picture between a few tokens of text."""
    draw = numpy.random.default_rng(seed)
    count = (side // 32) ** 2

    def document() -> Segment:
        visual = ResizedVisual.of_image(draw.integers(0, 256, (side, side, 3), dtype=numpy.uint8), FORMAT)
        words: list[int] = draw.integers(10, shapes.VOCABULARY, 12).tolist()
        return Segment([*words[:6], *[shapes.IMAGE] * count, *words[6:]], visuals=(visual,))

    prefix: list[int] = draw.integers(10, shapes.VOCABULARY, 32).tolist()
    return PromptGroup(Segment(prefix), tuple(document() for _ in range(documents)), (False,) * documents)


def measure(
    bench: Bench, shape: shapes.Shape, model: Model, kind: str, make: Callable[[int], PromptGroup], each: int
) -> None:
    """make: the batch of a seed; each: tokens of a document's picture"""
    batches = [make(seed) for seed in range(1 if bench.small else 10)]
    left = iter(batches)

    def run() -> None:
        model(packed(model, [next(left)], bench.device)).tolist()

    # Two of them are not counted.
    seconds = bench.median(run, 0.0, least=len(batches) - 2)
    documents, computed = len(batches[0].suffixes), tokens(batches[:1])
    seen = each * documents
    operations = shapes.gemm_operations(shape) * computed + shapes.tower_operations(shape) * seen
    bench.tell(
        step="vision", model=shape.name, kind=kind, documents=documents, tokens=computed, picture_tokens=seen,
        ms=round(seconds * 1e3, 2), pairs_per_second=round(documents / seconds),
        tflops=round(operations / seconds / 1e12),
        share=round(operations / seconds / 1e12 / bench.rates.get("bfloat16", 1), 3),
    )  # fmt: skip
