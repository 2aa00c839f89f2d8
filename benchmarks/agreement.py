"""Scores at the shapes of published models against transformers' own forward, in float32 and bfloat16.

usage: python -m benchmarks.agreement [qwen3-0.6b] [xlmr-m3]

Makes a seeded random checkpoint of each shape (2 GB of disk in a temporary folder while it runs) and scores
64 varied pairs of the tests by both. Needs the test extras. Results stand in docs/scores.md.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests import checkpoints, references
from tests.texts import DOCUMENTS, QUERIES

from benchmarks import program
from rerankd import Reranker

REFERENCES = {"qwen3-0.6b": references.qwen3_scores, "xlmr-m3": references.cross_encoder_scores}
PAIRS = [(query, document) for i, query in enumerate(QUERIES[::3]) for document in DOCUMENTS[i % 2 :: 2]][:64]


def compare(name: str, folder: Path) -> None:
    checkpoints.NAMED[name](folder)
    expected = REFERENCES[name](folder, PAIRS)
    print(f"{name}: {len(PAIRS)} pairs, transformers' scores from {min(expected):.3f} to {max(expected):.3f}")
    for dtype in ("float32", "bfloat16"):
        with Reranker(folder, device="cpu", dtype=dtype) as reranker:
            start = time.perf_counter()
            scores = reranker.score(PAIRS)
            seconds = time.perf_counter() - start
        apart = [abs(a - b) for a, b in zip(scores, expected, strict=True)]
        mean = sum(apart) / len(apart)
        print(f"  {dtype}: largest difference {max(apart):.1e}, mean {mean:.1e} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    parser = program.parser("agreement", __doc__)
    parser.add_argument("names", nargs="*", default=[*REFERENCES], metavar="name", help=f"of {', '.join(REFERENCES)}")
    for chosen in parser.parse_args().names:
        if chosen not in REFERENCES:
            parser.error(f"{chosen!r} is none of {', '.join(REFERENCES)}")
        with tempfile.TemporaryDirectory() as folder:
            compare(chosen, Path(folder))
