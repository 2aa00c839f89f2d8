"""A picture as the query: rerankd against transformers, pair by pair, in one run; and what loading a model takes.

usage: python -m benchmarks.vision speed FOLDER
           20 text documents against a picture of 1,024 tokens, both in the dtype that rerankd chooses here
       python -m benchmarks.vision memory FOLDER
           load in bfloat16, score a picture of 256 tokens, and say the most memory that was held

FOLDER is a Qwen3-VL-Reranker. `python -m tests.checkpoints ROOT qwen3-vl-2b qwen3-vl-2b-twelfth` makes two with random
weights: one of the 2B model's shape, and one of its widths and a twelfth of its depth. Needs the test extras. Results
stand in docs/vision.md.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
import torch

from rerankd import Reranker
from rerankd.core import Image
from rerankd.engine.device import place

DOCUMENTS = 20
WORDS = 100
SIDE = 1024
DTYPE = place("cpu", "auto", None).runtime.dtype


def picture(side: int = SIDE) -> PIL.Image.Image:
    """A square; 1,024 x 1,024 pixels are 1,024 tokens."""
    noise = np.random.default_rng(1).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((side, side), PIL.Image.Resampling.BICUBIC)


def documents() -> list[str]:
    from tests.texts import WORDS as words

    random = Random(7)
    return [" ".join(random.choices(words, k=WORDS)) for _ in range(DOCUMENTS)]


def speed(folder: Path) -> None:
    """rerankd before and after transformers, since other work on the machine may come and go."""
    texts = documents()
    ours = [_rerankd(folder, texts)]
    theirs, scores = _transformers(folder, texts)
    ours.append(_rerankd(folder, texts))
    seconds = max(seconds for seconds, _ in ours)
    apart = max(abs(a - b) for a, b in zip(ours[-1][1], scores, strict=True))
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {DOCUMENTS} documents of {WORDS} words, {DTYPE}"
    )
    print(f"rerankd: {', '.join(f'{one:.1f}' for one, _ in ours)} s; the slowest is {DOCUMENTS / seconds:.3f} docs/s")
    print(f"transformers, one pair at a time: {theirs:.1f} s, {DOCUMENTS / theirs:.3f} docs/s")
    print(f"rerankd's slowest is {theirs / seconds:.1f} times as fast; scores at most {apart:.4f} apart", flush=True)


def _rerankd(folder: Path, texts: list[str]) -> tuple[float, list[float]]:
    with Reranker(folder, device="cpu") as reranker:
        start = time.perf_counter()
        result = reranker.rerank([Image(picture())], texts, show_progress=False)
        return time.perf_counter() - start, [one.score for one in result.in_request_order()]


def _transformers(folder: Path, texts: list[str]) -> tuple[float, list[float]]:
    from tests import vision

    processor = vision.processor(folder)
    model = vision.load(folder, DTYPE)
    query = picture()
    vision.score(model, vision.inputs(processor, ["warm"], ["up"]))
    start = time.perf_counter()
    scores = [vision.score(model, vision.inputs(processor, [query], [text])) for text in texts]
    return time.perf_counter() - start, scores


def memory(folder: Path) -> None:
    start = time.perf_counter()
    with Reranker(folder, device="cpu", dtype="bfloat16") as reranker:
        loaded, at_rest = time.perf_counter() - start, _peak()
        start = time.perf_counter()
        score = reranker.rerank("a field of colours", [[Image(picture(SIDE // 2))]]).documents[0].score
        print(f"loaded and warm in {loaded:.1f} s, at most {at_rest:.2f} GiB")
        print(f"a picture of 256 tokens in {time.perf_counter() - start:.1f} s: {score:.4f}; at most {_peak():.2f} GiB")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    {"speed": speed, "memory": memory}[sys.argv[1]](Path(sys.argv[2]))
