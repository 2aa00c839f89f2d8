from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from rerankd.core import Image, Video
from rerankd.media.limits import BadMedia
from rerankd.media.sizing import TOKEN, Sizing, fit
from tests.media.golden.cases import FOLDER

GOLDEN: dict[str, list[int]] = json.loads((FOLDER / "golden.json").read_text())["sizes"]


def test_sizes_are_the_authors() -> None:
    assert len(GOLDEN) > 150
    for case, expected in GOLDEN.items():
        height, width, low, high = case.split()
        bounds = float(low) * TOKEN, float(high) * TOKEN
        assert fit(int(height), int(width), 32, *bounds) == tuple(expected), case


sides = st.integers(1, 5000)
tokens = st.integers(1, 3000)


@given(height=sides, width=sides, low=tokens, more=tokens)
def test_sizes_are_those_of_transformers(height: int, width: int, low: int, more: int) -> None:
    bounds = low * TOKEN, (low + more) * TOKEN
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(BadMedia, match="more than 200 times as long as wide"):
            fit(height, width, 32, *bounds)
        return
    rows, columns = fit(height, width, 32, *bounds)
    # transformers rounds a side below half a token down to none; a side of none cannot be compared.
    if min(height, width) > 16:
        assert (rows, columns) == smart_resize(height, width, 32, *bounds)
    assert rows % 32 == columns % 32 == 0
    assert min(rows, columns) >= 32


def test_bounds_of_an_image() -> None:
    sizing = Sizing(min_pixels=5000, max_pixels=50_000)
    assert sizing.image_bounds(Image("x")) == (5000, 50_000)
    assert sizing.image_bounds(Image("x", min_pixels=7000)) == (7000, 50_000)
    assert sizing.image_bounds(Image("x", max_pixels=9000)) == (5000, 9000)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (Image("x", min_pixels=0), "min_pixels is 0; give a number of pixels above 0"),
        (Image("x", max_pixels=4095), r"max_pixels \(4095\) is below min_pixels \(4096\)"),
        (Image("x", min_pixels=2_000_000), r"max_pixels \(1843200\) is below min_pixels \(2000000\)"),
        (Image("x", max_pixels=20_000_000), "max_pixels is 20000000, over the limit of 16777216"),
    ],
)
def test_bounds_that_make_no_sense(image: Image, problem: str) -> None:
    with pytest.raises(BadMedia, match=problem):
        Sizing().image_bounds(image)


def test_sampling_of_a_video() -> None:
    assert Sizing().video_sampling(Video("x")) == (1.0, 64)
    assert Sizing(fps=3, max_frames=8).video_sampling(Video("x")) == (3, 8)
    assert Sizing().video_sampling(Video("x", fps=0.5, max_frames=2)) == (0.5, 2)


@pytest.mark.parametrize(
    ("video", "problem"),
    [
        (Video("x", fps=0), "fps is 0; give a number of frames per second above 0"),
        (Video("x", fps=-1), "fps is -1"),
        (Video("x", fps=float("nan")), "fps is nan"),
        (Video("x", fps=float("inf")), "fps is inf"),
        (Video("x", max_frames=1), "max_frames is 1; frames are read in pairs, so give 2 or more"),
        (Video("x", max_frames=769), "max_frames is 769, over the limit of 768"),
    ],
)
def test_sampling_that_makes_no_sense(video: Video, problem: str) -> None:
    with pytest.raises(BadMedia, match=problem):
        Sizing().video_sampling(video)


@pytest.mark.parametrize(
    ("frames", "tokens"), [(2, 768), (20, 768), (22, 7680 / 11), (64, 240), (120, 134.4), (700, 134.4)]
)
def test_pixels_of_a_frame(frames: int, tokens: float) -> None:
    low, high = Sizing().frame_bounds(frames, 7680 * TOKEN)
    assert low == 128 * TOKEN
    assert high == pytest.approx(tokens * TOKEN, abs=1)


def test_a_total_of_ones_own_holds_for_files_and_lists() -> None:
    assert Sizing(total_pixels=4000 * TOKEN).frame_bounds(40, 1e12)[1] == 200 * TOKEN
