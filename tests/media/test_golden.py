"""Pixels, grids and times against the authors' own preprocessing (`golden/make_golden.py` says how)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from rerankd.core import Image, RerankRequest, Video, text_content
from rerankd.media.loader import MediaLoader
from rerankd.media.sources import Access
from rerankd.media.visual import ResizedVisual, VisionFormat
from tests.media.golden.cases import FILES, FOLDER, IMAGES, LISTS, STRIDE, frames, image

GOLDEN: dict[str, dict[str, Any]] = json.loads((FOLDER / "golden.json").read_text())


def shown(part: Image | Video) -> ResizedVisual:
    with MediaLoader(VisionFormat(), access=Access(local_folders=None)) as loader:
        return loader.load_blocking(RerankRequest(text_content("q"), ((part,),))).documents[0][0]


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_the_reference_to_the_bit(name: str) -> None:
    visual = shown(Image(image(name)))
    assert list(visual.grid) == GOLDEN["images"][name]["grid"]
    values = visual.pixel_values()
    assert values.shape == (np.prod(visual.grid), 3 * 2 * 16 * 16)
    assert hashlib.sha256(values.numpy()).hexdigest() == GOLDEN["images"][name]["sha256"]


@pytest.mark.parametrize(("kind", "name"), [("lists", name) for name in LISTS] + [("files", name) for name in FILES])
def test_videos_are_the_reference_within_one_level(kind: str, name: str) -> None:
    part = Video(frames(name)) if kind == "lists" else Video(str(FOLDER / name), **FILES[name])
    visual = shown(part)
    golden = GOLDEN[kind][name]
    with np.load(FOLDER / "golden.npz") as arrays:
        expected = arrays[f"{kind}/{name}"].transpose(0, 2, 3, 1).astype(int)
    assert list(visual.grid) == golden["grid"]
    assert [[f"{time:.1f} seconds", visual.tokens_per_step] for time in visual.seconds] == golden["steps"]
    apart = np.abs(visual.frames[:, ::STRIDE, ::STRIDE].astype(int) - expected)
    assert apart.max() <= 1
    assert (apart == 0).mean() > 0.999
    # The hash of strided samples says nothing of the rest: the mean of all values stands for it.
    assert float(visual.pixel_values().double().mean()) == pytest.approx(golden["mean"], abs=1e-5)
