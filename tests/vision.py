"""The vision-language reranker by independent means: transformers' processor and model, one pair at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch
import transformers
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from rerankd.core import Content, Image, Part, Text, Video
from tests.checkpoints import NO, YES
from tests.media.films import MOV, film
from tests.media.patterns import Pixels, pattern
from tests.prompts.authors import JUDGE, QWEN3_VL_TASK

TOKEN = 32 * 32


@dataclass(frozen=True, eq=False)
class Film:
    """A video, as its own frames, and those of them that the model is shown, with their times.

    Its frames are of a size that is shown as it is; how frames are resized is what the golden files test.
    """

    source: Any
    shown: Sequence[Pixels]
    rate: float
    indices: list[int]


Piece: TypeAlias = str | PIL.Image.Image | Film


def frame_list(count: int, seed: int = 0) -> Film:
    """A list of frames, which counts as two a second. qwen-vl-utils repeats the last one of an odd number."""
    frames = [pattern(448, 320, seed + i) for i in range(count)]
    shown = frames + frames[-1:] * (count % 2)
    return Film([PIL.Image.fromarray(frame) for frame in frames], shown, 2.0, list(range(len(shown))))


def film_file(folder: Path) -> Film:
    """A lossless file of 9 frames at 2 a second: 4.5 seconds, and so 4 frames, evenly spaced from first to last."""
    frames = [pattern(320, 448, 50 + i) for i in range(9)]
    path = folder / "film.mov"
    path.write_bytes(film(MOV, frames, rate=2, crf="0"))
    indices = [0, 3, 5, 8]
    return Film(str(path), [frames[i] for i in indices], 2.0, indices)


def content(pieces: Sequence[Piece]) -> Content:
    """The pieces as rerankd takes them."""
    return tuple(map(_part, pieces))


def _part(piece: Piece) -> Part:
    if isinstance(piece, str):
        return Text(piece)
    return Video(piece.source) if isinstance(piece, Film) else Image(piece)


class _Processor(Qwen3VLProcessor):
    """The reference's own, without the check of its parts' types, which looks for torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        """Take it."""


def processor(folder: Path) -> Any:
    """transformers' Qwen3VLProcessor with its PIL image processor."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    form = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    return _Processor(Qwen2VLImageProcessorPil(**form), tokenizer, Qwen3VLVideoProcessor(**form))


def inputs(reference: Any, query: Sequence[Piece], document: Sequence[Piece]) -> dict[str, Tensor]:
    """What the authors' script gives the model for a pair."""
    pieces = [*query, *document]
    images = [_resized(piece) for piece in pieces if isinstance(piece, PIL.Image.Image)]
    films = [piece for piece in pieces if isinstance(piece, Film)]
    text = (
        f"<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n<Instruct>: {QWEN3_VL_TASK}"
        f"<Query>:{_written(query)}\n<Document>:{_written(document)}<|im_end|>\n<|im_start|>assistant\n"
    )
    videos = [torch.from_numpy(np.stack(film.shown)).permute(0, 3, 1, 2) / 127.5 - 1 for film in films]
    metadata = [
        VideoMetadata(total_num_frames=len(one.shown), fps=one.rate, frames_indices=list(one.indices)) for one in films
    ]
    # Rescaling and normalising videos is torchvision's, so they come with it done.
    given = {
        "video_metadata": metadata,
        **dict.fromkeys(
            ("do_resize", "do_sample_frames", "do_convert_rgb", "do_rescale", "do_normalize", "cap_pixels_per_frame"),
            False,
        ),
    }
    return dict(
        reference(
            text=[text],
            images=images or None,
            videos=videos or None,
            images_kwargs={"do_resize": False},
            videos_kwargs=given,
            return_tensors="pt",
        )
    )


def _written(pieces: Sequence[Piece]) -> str:
    # A video's own <|vision_start|> and <|vision_end|> are left out, because transformers up to 5.9, the authors'
    # among them, replaced them together with the placeholder; later ones leave them around the frames.
    return (
        "".join(
            piece
            if isinstance(piece, str)
            else "<|video_pad|>"
            if isinstance(piece, Film)
            else "<|vision_start|><|image_pad|><|vision_end|>"
            for piece in pieces
        )
        if pieces
        else "NULL"
    )


def _resized(image: PIL.Image.Image) -> PIL.Image.Image:
    """As qwen-vl-utils does it: PIL's bicubic, to between 4 and 1,800 tokens."""
    height, width = smart_resize(image.height, image.width, 32, 4 * TOKEN, 1800 * TOKEN)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model."""
    return transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def score(model: Any, given: dict[str, Tensor]) -> float:
    """P(yes) against no."""
    logits = model(**given, logits_to_keep=1).logits[0, -1]
    return float(logits[[NO, YES]].float().softmax(0)[1])
