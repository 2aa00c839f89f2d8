"""A picture as the query: rerankd against transformers, pair by pair, in one run; and what loading a model takes.

usage: python -m benchmarks.vision speed FOLDER [DTYPE]
           rounds of 20 text documents against a picture of 1,024 tokens, both engines in turn and in one dtype (by
           default the one that rerankd chooses here); transformers scores some of the pairs, one at a time, and its
           rate is taken to hold for the rest
       python -m benchmarks.vision memory FOLDER
           load in bfloat16, score a picture of 256 tokens, and say the most memory that was held

FOLDER is a Qwen3-VL-Reranker. `python -m tests.checkpoints ROOT qwen3-vl-2b` makes one of the 2B model's shape with
random weights. Needs the test extras. Results stand in docs/vision.md.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import TypeVar

import numpy as np
import PIL.Image
import torch

from benchmarks import program
from rerankd import Reranker
from rerankd.backends.select import place
from rerankd.core import Image

ROUNDS = 3
DOCUMENTS = 20
WORDS = 100
PAIRS = 3
"""Of a round's documents, those that transformers scores."""
SIDE = 1024

Result = TypeVar("Result")


def picture(side: int, seed: int) -> PIL.Image.Image:
    """A square; 1,024 x 1,024 pixels are 1,024 tokens."""
    noise = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((side, side), PIL.Image.Resampling.BICUBIC)


def documents(seed: int) -> list[str]:
    from tests.texts import WORDS as words

    random = Random(seed)
    return [" ".join(random.choices(words, k=WORDS)) for _ in range(DOCUMENTS)]


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def speed(folder: Path, dtype: str = "auto") -> None:
    """Every round has a picture and texts of its own, so that neither engine can remember any."""
    from tests import vision

    chosen = place("cpu", dtype).dtype
    processor, model = vision.processor(folder), vision.load(folder, chosen)

    def pair_by_pair(query: PIL.Image.Image, texts: list[str]) -> list[float]:
        return [vision.score(model, vision.inputs(processor, [query], [text])) for text in texts]

    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {chosen}, {DOCUMENTS} documents of {WORDS} "
        f"words, of which transformers scores {PAIRS}"
    )
    times: list[float] = []
    with Reranker(folder, device="cpu", dtype=dtype) as reranker:
        for seed in range(ROUNDS + 1):
            query, texts = picture(SIDE if seed else SIDE // 8, seed), documents(seed)
            ours, result = timed(lambda: reranker.rerank([Image(query)], texts, show_progress=False))  # noqa: B023
            theirs, scores = timed(lambda: pair_by_pair(query, texts[:PAIRS]))  # noqa: B023
            if not seed:  # a small picture, to warm up with
                continue
            rates = DOCUMENTS / ours, PAIRS / theirs
            apart = max(abs(a.score - b) for a, b in zip(result.in_request_order(), scores, strict=False))
            times.append(rates[0] / rates[1])
            print(
                f"round {seed}: rerankd {rates[0]:.3f} docs/s ({ours:.1f} s), transformers {rates[1]:.3f} docs/s "
                f"({theirs:.1f} s): {times[-1]:.1f} times; scores at most {apart:.4f} apart",
                flush=True,
            )
    print(f"rerankd is {min(times):.1f} to {max(times):.1f} times as fast, {median(times):.1f} in the middle")


def memory(folder: Path) -> None:
    seconds, reranker = timed(lambda: Reranker(folder, device="cpu", dtype="bfloat16"))
    with reranker:
        print(f"loaded and warm in {seconds:.1f} s, at most {_peak():.2f} GiB")
        document = [Image(picture(SIDE // 2, 1))]
        seconds, result = timed(lambda: reranker.rerank("a field of colours", [document]))
        score = result.documents[0].score
        print(f"a picture of 256 tokens in {seconds:.1f} s: {score:.4f}; at most {_peak():.2f} GiB")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    parser = program.parser("vision", __doc__)
    measurements = parser.add_subparsers(required=True, dest="measurement")
    for name in ("speed", "memory"):
        measurement = measurements.add_parser(name)
        measurement.add_argument("folder", type=Path, help="a Qwen3-VL-Reranker")
        if name == "speed":
            measurement.add_argument("dtype", nargs="?", default="auto")
    given = parser.parse_args()
    program.run(lambda: speed(given.folder, given.dtype) if given.measurement == "speed" else memory(given.folder))
