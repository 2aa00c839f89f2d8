"""What `sentence-transformers` runs: transformers' own models on padded batches, without its tokenising."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import transformers

from benchmarks.gpu.batches import PREFIX, mixed, uniform
from benchmarks.gpu.models import shapes
from benchmarks.gpu.shapes import DECODER, VOCABULARY, Shape
from benchmarks.gpu.timing import Bench


def transformers_speed(bench: Bench) -> None:
    """The best of several batch sizes, sorted by length as its `predict` sorts."""
    for shape in shapes(bench):
        model = random_model(shape, bench.device)
        for kind, lengths in (("uniform", uniform), ("mixed", partial(mixed, most=shape.longest))):
            pairs = sorted(PREFIX + length for length in lengths(2 if bench.small else 128))
            rates = {}
            for size in (2,) if bench.small else (32, 128):
                seconds = bench.median(partial(padded, model, shape, pairs, size, bench.device), 1.0)
                rates[size] = round(len(pairs) / seconds)
            bench.tell(step="peers", peer="transformers", model=shape.name, kind=kind, pairs_per_second=rates)
        del model
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def random_model(shape: Shape, device: torch.device) -> Any:
    """The model of transformers, made on the device: in bfloat16 there, in float32 on a CPU."""
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            return getattr(transformers, shape.architecture)(shape.config()).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def padded(model: Any, shape: Shape, pairs: Sequence[int], size: int, device: torch.device) -> None:
    """Score pairs of so many tokens, `size` at a time."""
    for start in range(0, len(pairs), size):
        own = pairs[start : start + size]
        width = max(own)
        ids = torch.randint(10, VOCABULARY, (len(own), width))
        mask = (torch.arange(width) >= width - torch.tensor(own)[:, None]).long()
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if shape.architecture == DECODER:
            model(**inputs, logits_to_keep=1).logits[:, -1, [1, 2]].tolist()
        else:
            model(**inputs).logits.tolist()
