"""The vision-language reranker by independent means: transformers' processors and model, one pair at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from rerankd.core import Content, Image, Part, PromptGroup, RerankRequest, Text, Video
from rerankd.media.loader import MediaLoader
from rerankd.media.sources import Access
from rerankd.media.visual import VisionFormat
from rerankd.models.recipes.qwen3 import QWEN3_VL_RERANKER
from rerankd.prompts import load_prompts
from tests.checkpoints import NO, YES
from tests.media.golden.cases import FOLDER
from tests.pairs import Film, Pair, Piece
from tests.prompts.authors import JUDGE, QWEN3_VL_TASK

TOKEN = 32 * 32
IMAGE, VIDEO = 151655, 151656


def golden_prompts() -> dict[str, dict[str, Any]]:
    """`ids` [T], `positions` [3, T], `image_grid_thw` and `video_grid_thw` of each pair, by `make_prompts.py`."""
    golden: dict[str, dict[str, Any]] = {}
    with np.load(FOLDER / "prompts.npz") as arrays:
        for name in arrays:
            pair, _, key = name.rpartition("/")
            golden.setdefault(pair, {})[key] = arrays[name]
    return golden


def content(pieces: Sequence[Piece]) -> Content:
    """The pieces as rerankd takes them."""
    return tuple(map(_part, pieces))


def _part(piece: Piece) -> Part:
    if isinstance(piece, str):
        return Text(piece)
    return Video(piece.source, piece.fps, piece.max_frames) if isinstance(piece, Film) else Image(piece)


def by_query(cases: Iterable[Pair]) -> list[RerankRequest]:
    """One request for each query with its documents, so that what is shared is shared."""
    listed = list(cases)
    queries = {id(query): query for query, _ in listed}
    return [
        RerankRequest(content(query), tuple(content(document) for asked, document in listed if asked is query))
        for query in queries.values()
    ]


def groups(folder: Path, cases: Iterable[Pair]) -> list[PromptGroup]:
    """The prompts of `by_query(cases)`, without a model."""
    prompts = load_prompts(folder, recipe=QWEN3_VL_RERANKER, positions=262144)
    with MediaLoader(VisionFormat.from_folder(folder), access=Access(local_folders=None)) as loader:
        return [prompts.build(request, loader.load_blocking(request).visuals) for request in by_query(cases)]


class _Processor(Qwen3VLProcessor):
    """The reference's own, without the check of its parts' types, which looks for torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        """Take it."""


def processor(folder: Path) -> Any:
    """transformers' Qwen3VLProcessor with its PIL image processor."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    form = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    return _Processor(Qwen2VLImageProcessorPil(**form), tokenizer, Qwen3VLVideoProcessor(**form))


def inputs(
    reference: Any, query: Sequence[Piece], document: Sequence[Piece], ids: Iterable[int] | None = None
) -> dict[str, Tensor]:
    """What the authors' script gives the model for a pair.

    ids: the prompt's, as the transformers of the authors' time had them (`make_prompts.py`). Without them they are
        the installed transformers' own, which leaves the template's <|vision_start|> and <|vision_end|> around a
        video's frames: so not for videos
    """
    pieces = [*query, *document]
    images = [_resized(piece) for piece in pieces if isinstance(piece, PIL.Image.Image)]
    videos = [_planes(piece) for piece in pieces if isinstance(piece, Film)]
    given: dict[str, Tensor] = {}
    if images:
        given |= reference.image_processor(images=images, do_resize=False, return_tensors="pt")
    if videos:
        # Rescaling and normalising videos is torchvision's, so they come with it done.
        steps = (
            "do_resize",
            "do_sample_frames",
            "do_convert_rgb",
            "do_rescale",
            "do_normalize",
            "cap_pixels_per_frame",
        )
        given |= reference.video_processor(videos=videos, return_tensors="pt", **dict.fromkeys(steps, False))
    if ids is None:
        assert not videos
        ids = reference(text=[prompt(query, document)], images=images or None, images_kwargs={"do_resize": False})[
            "input_ids"
        ][0]
    tokens = torch.tensor([list(ids)])
    kinds = (tokens == IMAGE).int() + 2 * (tokens == VIDEO).int()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": kinds, **given}


def prompt(query: Sequence[Piece], document: Sequence[Piece]) -> str:
    """The authors' template, filled in."""
    return (
        f"<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n<Instruct>: {QWEN3_VL_TASK}"
        f"<Query>:{_written(query)}\n<Document>:{_written(document)}<|im_end|>\n<|im_start|>assistant\n"
    )


def _written(pieces: Sequence[Piece]) -> str:
    pads = {PIL.Image.Image: "<|image_pad|>", Film: "<|video_pad|>"}
    return (
        "".join(
            piece if isinstance(piece, str) else f"<|vision_start|>{pads[type(piece)]}<|vision_end|>"
            for piece in pieces
        )
        or "NULL"
    )


def _resized(image: PIL.Image.Image) -> PIL.Image.Image:
    """As qwen-vl-utils does it: PIL's bicubic, to between 4 and 1,800 tokens."""
    height, width = smart_resize(image.height, image.width, 32, 4 * TOKEN, 1800 * TOKEN)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def _planes(film: Film) -> Tensor:
    """float32 [T, 3, H, W], from -1 to 1."""
    return torch.from_numpy(np.stack(film.shown)).permute(0, 3, 1, 2) / 127.5 - 1


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model."""
    return transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def score(model: Any, given: dict[str, Tensor]) -> float:
    """P(yes) against no."""
    logits = model(**given, logits_to_keep=1).logits[0, -1]
    return float(logits[[NO, YES]].float().softmax(0)[1])
