from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from rerankd.media.sampling import file_indices, list_indices, timestamps
from tests.media.golden.cases import FOLDER

GOLDEN: dict[str, list[int]] = json.loads((FOLDER / "golden.json").read_text())["sampling"]


def test_frames_of_a_file_are_the_authors() -> None:
    assert len(GOLDEN) > 150
    for case, expected in GOLDEN.items():
        total, rate, fps, most = (float(value) for value in case.split())
        assert file_indices(int(total), rate, fps, int(most)) == expected, case


@given(
    total=st.integers(2, 20_000),
    rate=st.floats(1, 120),
    fps=st.floats(0.01, 100),
    most=st.integers(2, 200),
)
def test_frames_of_a_file(total: int, rate: float, fps: float, most: int) -> None:
    indices = file_indices(total, rate, fps, most)
    assert indices[0] == 0
    assert indices[-1] == total - 1
    assert indices == sorted(set(indices))
    assert len(indices) % 2 == 0
    assert len(indices) <= most
    assert len(indices) >= min(4, most - most % 2, total - total % 2)


def test_a_single_frame() -> None:
    assert file_indices(1, 25.0, 1.0, 64) == [0]


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [
        (1, 64, [0, 0]),
        (2, 64, [0, 1]),
        (3, 64, [0, 1, 2, 2]),
        (5, 4, [0, 1, 2, 4]),
        (10, 5, [0, 2, 4, 6, 9, 9]),
        (7, 2, [0, 6]),
    ],
)
def test_frames_of_a_list(total: int, most: int, expected: list[int]) -> None:
    assert list_indices(total, most) == expected


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=70), st.floats(0.5, 240))
def test_times_are_those_of_transformers(indices: list[int], rate: float) -> None:
    expected = Qwen3VLProcessor._calculate_timestamps(None, list(indices), rate, 2)
    assert list(timestamps(indices, rate)) == expected
