"""The size at which the model is shown a picture: the authors' resizing rules.

Source: `process_vision_info` of the PyPI package qwen-vl-utils 0.0.14 with the arguments that the authors'
`qwen3_vl_reranker.py` (repository QwenLM/Qwen3-VL-Embedding) gives it. A token is a square of 32 x 32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rerankd.core import Image, Video
from rerankd.media.limits import BadMedia
from rerankd.media.tiles import Tiles

TOKEN = 32 * 32
"""Pixels in a token."""

MAX_RATIO = 200
CEILING_IMAGE_PIXELS = 16_384 * TOKEN
CEILING_FRAMES = 768
"""The largest values that a request may ask for; qwen-vl-utils' own limits."""

FRAME_PAIR = 2
MIN_FRAMES = 4

FILE_TOTAL_PIXELS = 128_000 * TOKEN * 0.9
LIST_TOTAL_PIXELS = 7_680 * TOKEN
"""The authors' script hands its total over for lists of frames only; for files qwen-vl-utils' own holds."""


_TILES = "this model reads images in tiles of one size"


@dataclass(frozen=True, slots=True)
class Sizing:
    """Sizes of images and videos for requests that do not set them. Defaults are those of Qwen3-VL-Reranker's authors.

    min_pixels, max_pixels: limits on an image's pixels, after resizing
    fps: frames to read for each second of a video file
    max_frames: the most frames of a video; 0 for a model that reads no videos
    frame_min_pixels, frame_max_pixels: limits on the pixels of a video's frame, after resizing
    total_pixels: the most pixels of a video, where a pair of frames counts once; None for the authors' own limits,
        which are 7,680 tokens for a list of frames and 115,200 for a file
    least_side: see `fit`
    tiles: the tiles of a model that reads images only in tiles of one size; the limits on pixels then have no effect
    """

    min_pixels: int = 4 * TOKEN
    max_pixels: int = 1_800 * TOKEN
    fps: float = 1.0
    max_frames: int = 64
    frame_min_pixels: int = 128 * TOKEN
    frame_max_pixels: int = 768 * TOKEN
    total_pixels: int | None = None
    least_side: int = 1
    tiles: Tiles | None = None

    def told(self, said: Mapping[str, Any]) -> Sizing:
        """The same with what a user says, by field.

        Raises BadMedia for bounds that no size satisfies, and for frames of videos and tiles that a model is not shown.
        """
        if not self.max_frames and not said.keys().isdisjoint(("fps", "max_frames")):
            raise BadMedia("this model reads images and no videos; leave fps and max_frames out")
        if self.tiles is not None and not said.keys().isdisjoint(("min_pixels", "max_pixels")):
            raise BadMedia(f"{_TILES}; leave min_pixels and max_pixels out")
        tiles = said.get("tiles")
        if tiles is not None and (self.tiles is None or tiles.side != self.tiles.side):
            has = "no tiles" if self.tiles is None else f"tiles of {self.tiles.side} pixels along a side"
            raise BadMedia(f"this model is shown {has}; leave tiles out, or give such")
        sizing = replace(self, **said)
        sizing.image_bounds(Image(None))
        if sizing.max_frames:
            sizing.video_sampling(Video(None))
        return sizing

    def image_bounds(self, image: Image) -> tuple[int, int]:
        """(min_pixels, max_pixels) for an image. Raises BadMedia where its own values make no sense."""
        if self.tiles is not None:
            if image.min_pixels is not None or image.max_pixels is not None:
                raise BadMedia(f"{_TILES}; leave min_pixels and max_pixels out")
            return 1, self.tiles.pixels
        low = self.min_pixels if image.min_pixels is None else image.min_pixels
        high = self.max_pixels if image.max_pixels is None else image.max_pixels
        if low < 1:
            raise BadMedia(f"min_pixels is {low}; give a number of pixels above 0")
        if high < low:
            raise BadMedia(f"max_pixels ({high}) is below min_pixels ({low}); give both, smaller one first")
        # A server's own max_pixels may lie above the ceiling; a request's may not.
        ceiling = max(CEILING_IMAGE_PIXELS, self.max_pixels)
        if high > ceiling:
            raise BadMedia(f"max_pixels is {high}, over the limit of {ceiling}")
        return low, high

    def video_sampling(self, video: Video) -> tuple[float, int]:
        """(fps, max_frames) for a video. Raises BadMedia where its own values make no sense, or none can be shown."""
        if not self.max_frames:
            raise BadMedia("this model reads images and no videos; send a frame of it as an image")
        fps = self.fps if video.fps is None else video.fps
        frames = self.max_frames if video.max_frames is None else video.max_frames
        if not (math.isfinite(fps) and fps > 0):
            raise BadMedia(f"fps is {fps}; give a number of frames a second above 0")
        if frames < FRAME_PAIR:
            raise BadMedia(f"max_frames is {frames}; frames are read in pairs, so give 2 or more")
        ceiling = max(CEILING_FRAMES, self.max_frames)
        if frames > ceiling:
            raise BadMedia(f"max_frames is {frames}, over the limit of {ceiling}")
        return fps, frames

    def frame_bounds(self, frames: int, total_pixels: float) -> tuple[int, float]:
        """(min, max) pixels of each frame of a video of `frames` frames."""
        total = total_pixels if self.total_pixels is None else self.total_pixels
        low = self.frame_min_pixels
        return low, max(min(self.frame_max_pixels, total / frames * FRAME_PAIR), int(low * 1.05))


def fit(
    height: int, width: int, factor: int, min_pixels: float, max_pixels: float, least_side: int = 1
) -> tuple[int, int]:
    """The size nearest to height x width whose sides are multiples of `factor`, within the pixel bounds.

    A side is never shorter than `factor`, so that a long strip may stay above a `max_pixels` below 200 tokens.

    least_side: how many times `factor` a side counts at least when the area is compared with the bounds: once by
        qwen-vl-utils. By transformers' `smart_resize` a side below half of `factor` counts nothing, so that such a
        strip is made as small as `min_pixels` allows.

    Raises BadMedia for a picture more than 200 times as long as wide.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise BadMedia(f"{width} x {height} is more than {MAX_RATIO} times as long as wide; crop or pad the picture")
    rows = max(least_side, round(height / factor)) * factor
    columns = max(least_side, round(width / factor)) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns
