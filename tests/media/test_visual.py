from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from rerankd.core import ModelError
from rerankd.media.visual import ResizedVisual, VisionFormat
from tests.media.patterns import pattern

CLIP = VisionFormat(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
FINE = VisionFormat(patch_size=14)


def reference(form: VisionFormat) -> dict[str, Any]:
    return {
        "patch_size": form.patch_size,
        "temporal_patch_size": form.temporal_patch_size,
        "merge_size": form.merge_size,
        "image_mean": list(form.mean),
        "image_std": list(form.std),
    }


@settings(max_examples=25)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    form=st.sampled_from([VisionFormat(), CLIP, FINE]),
    seed=st.integers(0, 9),
)
def test_images_are_the_reference_processors_to_the_bit(rows: int, columns: int, form: VisionFormat, seed: int) -> None:
    pixels = pattern(columns * form.factor, rows * form.factor, seed)
    expected = Qwen2VLImageProcessorPil(**reference(form))(
        images=[PIL.Image.fromarray(pixels)], do_resize=False, return_tensors="pt"
    )
    visual = ResizedVisual.of_image(pixels, form)
    assert list(visual.grid) == expected["image_grid_thw"][0].tolist()
    assert torch.equal(visual.pixel_values(), expected["pixel_values"])
    assert visual.tokens == visual.tokens_per_step == rows * columns
    assert visual.seconds == ()


@settings(max_examples=25)
@given(
    count=st.integers(1, 7),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    form=st.sampled_from([VisionFormat(), CLIP]),
)
def test_videos_are_patched_as_the_reference_does(count: int, rows: int, columns: int, form: VisionFormat) -> None:
    frames = np.stack([pattern(columns * 32, rows * 32, seed) for seed in range(count)])
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (form.mean, form.std))
    expected, *grid = Qwen3VLVideoProcessor().patchify((planes - mean) / std, 16, 2, 2)
    visual = ResizedVisual.of_video(frames, tuple(range(-(-count // 2))), form)
    assert list(visual.grid) == grid
    assert visual.tokens == len(visual.seconds) * visual.tokens_per_step
    torch.testing.assert_close(visual.pixel_values(), expected[0], rtol=0, atol=1e-6)


def test_digests_tell_pixels_and_shapes_apart_and_nothing_else() -> None:
    pixels = pattern(64, 32)
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    digest = ResizedVisual.of_image(pixels, VisionFormat()).digest
    assert ResizedVisual.of_image(pixels.copy(), VisionFormat()).digest == digest
    assert ResizedVisual.of_image(np.asfortranarray(pixels), VisionFormat()).digest == digest
    assert ResizedVisual.of_video(pixels[None], (0.0,), VisionFormat()).digest == digest
    assert ResizedVisual.of_image(other, VisionFormat()).digest != digest
    assert ResizedVisual.of_image(pixels.reshape(64, 32, 3), VisionFormat()).digest != digest


GIVEN = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
}
READ = VisionFormat(patch_size=14, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_format_of_a_checkpoint(tmp_path: Path) -> None:
    assert VisionFormat.from_folder(write(tmp_path, preprocessor_config=GIVEN)) == READ


def test_the_format_of_a_checkpoint_with_both_files(tmp_path: Path) -> None:
    write(tmp_path, preprocessor_config=GIVEN, video_preprocessor_config={**GIVEN, "fps": 2})
    assert VisionFormat.from_folder(tmp_path) == READ


def test_the_format_of_a_checkpoint_as_transformers_5_writes_it(tmp_path: Path) -> None:
    write(tmp_path, processor_config={"image_processor": GIVEN, "video_processor": GIVEN})
    assert VisionFormat.from_folder(tmp_path) == READ


def test_a_rescale_factor_is_honoured(tmp_path: Path) -> None:
    write(
        tmp_path, preprocessor_config={**GIVEN, "rescale_factor": 0.01, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    )
    assert VisionFormat.from_folder(tmp_path).lookup()[2, 200] == np.float32(2.0)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "has no preprocessor_config.json"),
        ({"preprocessor_config": "{"}, "cannot be read"),
        ({"preprocessor_config": "[]"}, "is not a JSON object"),
        ({"preprocessor_config": {"patch_size": 16}}, "incomplete"),
        ({"preprocessor_config": {**GIVEN, "image_mean": [1, 2]}}, "incomplete"),
        (
            {"preprocessor_config": GIVEN, "video_preprocessor_config": {**GIVEN, "image_mean": [0, 0, 0]}},
            "image and video processors that differ",
        ),
    ],
)
def test_a_format_that_cannot_be_read(tmp_path: Path, files: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        VisionFormat.from_folder(write(tmp_path, **files))
