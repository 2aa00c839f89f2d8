"""Write `golden.npz` and `golden.json`: what the authors' own preprocessing makes of the cases.

Run it from the repository's root, in an environment of its own:

    python -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.14.1 torchvision==0.29.1 \
        transformers==5.23.0 qwen-vl-utils==0.0.14 decord==0.6.0 av pillow
    /tmp/golden/bin/python -m tests.media.golden.make_golden

Images, lists and files pass through `process_vision_info` with the arguments of the authors'
`qwen3_vl_reranker.py`, then through transformers' processors with `do_resize=False`. Of an image
a hash of the values is kept, of a video every 17th row and column of its 8-bit values.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from typing import Any

os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"

import numpy as np
import torch
from qwen_vl_utils import process_vision_info
from qwen_vl_utils.vision_process import smart_nframes, smart_resize
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.media.golden.cases import FILES, FOLDER, IMAGES, LISTS, STRIDE, frames, image, write_files

TOKEN = 32 * 32
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}


def vision(part: dict[str, Any]) -> Any:
    return process_vision_info(
        [{"role": "user", "content": [part]}],
        image_patch_size=16,
        return_video_kwargs=True,
        return_video_metadata=True,
    )


def hashed(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def of_image(name: str) -> dict[str, Any]:
    part = {"type": "image", "image": image(name), "min_pixels": 4 * TOKEN, "max_pixels": 1800 * TOKEN}
    images, _, _ = vision(part)
    out = Qwen2VLImageProcessorPil(**HALF)(images=images, do_resize=False, return_tensors="np")
    return {"grid": out["image_grid_thw"][0].tolist(), "sha256": hashed(out["pixel_values"])}


def of_video(part: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    _, videos, kwargs = vision({"type": "video", **part})
    ((video, metadata),) = videos
    processor = Qwen3VLVideoProcessor(**HALF)
    out = processor(
        videos=[video], video_metadata=[metadata], do_resize=False, return_metadata=True, return_tensors="pt", **kwargs
    )
    stand_in = type("StandIn", (), {})()
    stand_in.video_processor = processor
    stand_in.vision_start_token = stand_in.vision_end_token = ""
    stand_in.video_token = "."
    stand_in._calculate_timestamps = Qwen3VLProcessor._calculate_timestamps.__get__(stand_in)
    text = Qwen3VLProcessor.replace_video_token(stand_in, out, 0)
    assert torch.equal(video, video.round())
    told = {
        "grid": out["video_grid_thw"][0].tolist(),
        "steps": [[time, len(tokens)] for time, tokens in re.findall(r"<([^>]+)>(\.*)", text)],
        "mean": float(out["pixel_values_videos"].double().mean()),
    }
    return told, video[:, :, ::STRIDE, ::STRIDE].to(torch.uint8).numpy()


def of_sampling(total: int, rate: float, fps: float, max_frames: int) -> list[int]:
    count = smart_nframes({"fps": fps, "max_frames": max_frames}, total_frames=total, video_fps=rate)
    return torch.linspace(0, total - 1, count).round().long().tolist()


def main() -> None:
    write_files()
    golden: dict[str, dict[str, Any]] = {"images": {}, "lists": {}, "files": {}}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name in IMAGES:
        golden["images"][name] = of_image(name)
    for name in LISTS:
        listed = frames(name)
        if len(listed) > 64:
            listed = [listed[index] for index in np.linspace(0, len(listed) - 1, 64, dtype=int)]
        part = {"video": listed, "total_pixels": 7680 * TOKEN}
        golden["lists"][name], arrays[f"lists/{name}"] = of_video(part)
    for name, more in FILES.items():
        part = {"video": f"{FOLDER / name}", "fps": 1, "max_frames": 64, **more}
        golden["files"][name], arrays[f"files/{name}"] = of_video(part)
    golden["sampling"] = {
        " ".join(map(str, case)): of_sampling(*case)
        for case in itertools.product((2, 3, 5, 29, 300, 17_983), (7.5, 29.97002997, 60), (0.3, 1, 4), (4, 9, 64))
    }
    golden["sizes"] = {
        f"{height} {width} {low} {high}": smart_resize(height, width, 32, low * TOKEN, high * TOKEN)
        for height, width in itertools.product((1, 15, 16, 17, 48, 80, 500, 1079, 4001), repeat=2)
        for low, high in ((4, 1800), (128, 230.4), (256, 256))
        if max(height, width) <= 200 * min(height, width)
    }
    (FOLDER / "golden.json").write_text(json.dumps(golden) + "\n")
    np.savez_compressed(FOLDER / "golden.npz", **arrays)


if __name__ == "__main__":
    main()
