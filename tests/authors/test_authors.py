"""Scores are those of the authors' own packages, which have a Python of their own: `make test-authors`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rerankd import Reranker
from tests.checkpoints import Storage
from tests.conftest import MakeCheckpoint
from tests.decoder_checkpoints import gemma, qwen2
from tests.late_checkpoints import stanford
from tests.layerwise_checkpoints import gemma2, minicpm
from tests.models.test_piece_decoders import PAIRS

PYTHON = os.environ.get("RERANKD_AUTHORS_PYTHON", "")
LONG = [
    ("how far is it to the moon? " * asked, "The moon is far away, and yet it is near. " * told)
    for asked, told in ((1, 200), (80, 1), (80, 200))
]
"""Pairs of which the authors of the rerankers of 512 tokens cut the document, the query, and both."""
OLD = {"storage": Storage(old_keys=True)}
"""The names of entries that older versions of transformers read."""
CASES: dict[str, tuple[str, Callable[..., Path], dict[str, Any], dict[str, Any]]] = {
    "bge-reranker-v2-gemma": ("gemma", gemma, OLD, {"recipe": "bge-reranker-gemma"}),
    "minicpm-layerwise": ("layerwise", minicpm, {}, {}),
    "minicpm-layerwise, 3 layers": ("layerwise-3", minicpm, {}, {"cutoff_layers": 3}),
    "gemma2-lightweight": ("lightweight", gemma2, {}, {}),
    "gemma2-lightweight, 3 layers": ("lightweight-3", gemma2, {}, {"cutoff_layers": 3}),
    "gemma2-lightweight, compressed": (
        "lightweight-compressed",
        gemma2,
        {},
        {"cutoff_layers": 3, "hf_overrides": {"compress_ratio": 2, "compress_layers": [1, 2, 3]}},
    ),
    "mxbai-rerank-v2": ("mxbai", qwen2, OLD, {"recipe": "mxbai-rerank"}),
    "colbert": ("pylate", stanford, {}, {}),
    "colbert, attending": ("pylate", stanford, {"attend_to_mask_tokens": True, "query_maxlen": 20}, {}),
}
"""The name that score.py has, the checkpoint, and how rerankd loads it."""


def authors(name: str, folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    script = Path(__file__).with_name("score.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, str(script), name, str(folder)],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_package(make_checkpoint: MakeCheckpoint, case: str) -> None:
    name, maker, form, options = CASES[case]
    folder, pairs = make_checkpoint(maker, **form), [*PAIRS, *LONG]
    expected = authors(name, folder, pairs)
    with Reranker(folder, device="cpu", dtype="float32", **options) as reranker:
        found = reranker.score(pairs)
    width = max(expected) - min(expected)
    assert len(expected) >= 40
    assert width >= 0.2
    # A score by MaxSim is a sum over some 30 tokens, so that it is by so much less exact as it is larger.
    assert found == pytest.approx(expected, abs=1e-5 * max(1.0, width))
