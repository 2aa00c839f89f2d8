"""The comparison of int8 with float32: its figures, and the real model within the bounds that docs/ states."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from rerankd.bench.quantization import Agreement, compare, corpus_pairs, kendall_tau


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30))
def test_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b).statistic, nan_ok=True)


def test_figures() -> None:
    agreement = Agreement.of([0.1, 0.5, 0.9], [0.1, 0.7, 0.6])
    assert agreement.largest_difference == pytest.approx(0.3)
    assert agreement.mean_difference == pytest.approx(0.5 / 3)
    assert agreement.tau == pytest.approx(1 / 3)


def test_pairs_are_real_text_and_the_same_each_time() -> None:
    pairs = corpus_pairs(60, 0)
    assert len(pairs) == len(set(pairs)) == 60
    assert len({query for query, _ in pairs}) == 3
    assert pairs == corpus_pairs(60, 0) != corpus_pairs(60, 1)


def test_minilm_in_int8_ranks_as_in_float32(minilm_path: Path) -> None:
    agreement = compare(str(minilm_path), 500, 0)
    assert agreement.highest - agreement.lowest > 0.2
    assert agreement.largest_difference <= 0.02
    assert agreement.tau >= 0.98
    assert agreement.largest_difference > 0  # it was int8 that was compared


def test_the_command_prints_the_figures(bert_checkpoint: Path) -> None:
    words = [sys.executable, "-m", "rerankd", "bench", "quantization", str(bert_checkpoint), "--pairs", "20"]
    printed = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout
    assert printed.startswith("20 pairs, float32 scores from 0.")
    assert re.search(r"^Kendall's tau +[01]\.\d{4}$", printed, re.MULTILINE)
