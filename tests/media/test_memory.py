"""What media take at most of a machine: in processes of their own, whose memory is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.media.hostile import large_png, long_gif, write_padded_film

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")

MIB = 1 << 20

LOADING = """
import json, sys
import torch
from rerankd.core import Image, InvalidRequest, RerankRequest, Video, text_content
from rerankd.media.loader import MediaLoader
from rerankd.media.sources import Access
from rerankd.media.visual import VisionFormat
from rerankd.memory import trim_memory
from tests.media.hostile import resident

kind, *paths = sys.argv[1:]
documents = tuple(({"image": Image, "video": Video}[kind](path),) for path in paths)
problem = None
small = torch.nn.functional.interpolate(torch.zeros(1, 1, 64, 64), size=(32, 32), mode="bicubic", antialias=True)
with MediaLoader(VisionFormat(), access=Access(local_folders=None)) as loader:
    before = resident("self")
    try:
        loader.load_blocking(RerankRequest(text_content("q"), documents))
    except InvalidRequest as error:
        problem = error.problem
    held = [budget.held for budget in loader._memory]
    peak = resident("self", peak=True) - before
    trim_memory()  # as an engine does that idles
    after = resident("self") - before
print(json.dumps({"problem": problem, "held": held, "peak": peak, "after": after}))
"""


def load(kind: str, *paths: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", LOADING, kind, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["held"] == [0, 0, 0]
    assert result["after"] < 150 * MIB
    return result


def test_pictures_that_are_large_once_they_are_decoded(tmp_path: Path) -> None:
    """Four of them at a time would take 2.5 GB."""
    data = large_png()
    paths = [tmp_path / f"{name}.png" for name in range(4)]
    for path in paths:
        path.write_bytes(data)
    result = load("image", *paths)
    assert result["problem"] is None
    assert 600 * MIB < result["peak"] < 1000 * MIB


def test_large_video_files(tmp_path: Path) -> None:
    """Six of them at a time would take 1.5 GB."""
    paths = [tmp_path / f"{name}.mp4" for name in range(6)]
    for path in paths:
        write_padded_film(path, 250 * MIB)
    result = load("video", *paths)
    assert result["problem"] is None
    assert 250 * MIB < result["peak"] < 650 * MIB


@pytest.mark.parametrize(
    ("side", "problem"),
    [(8000, "pixels have to be decoded to sample the video"), (9000, "over the limit of 80,000,000")],
)
def test_a_small_file_of_many_large_frames(tmp_path: Path, side: int, problem: str) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(long_gif(side))
    result = load("video", path)
    assert problem in result["problem"]
    assert result["peak"] < 100 * MIB
