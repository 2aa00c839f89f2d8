"""The size to which images and frames are resized for the model, by the rules of the authors of Qwen3-VL-Reranker.

Source: `process_vision_info` of the PyPI package qwen-vl-utils 0.0.14, with the arguments that the authors'
`qwen3_vl_reranker.py` (repository QwenLM/Qwen3-VL-Embedding) passes. A token is a square of 32 x 32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rerankd.core import Image, Video
from rerankd.media.limits import BadMedia
from rerankd.media.tiles import Tiles

TOKEN = 32 * 32
"""Pixels in a token."""

MAX_RATIO = 200
CEILING_IMAGE_PIXELS = 16_384 * TOKEN
CEILING_FRAMES = 768
"""The largest values that a request may set; these are limits of qwen-vl-utils."""

FRAME_PAIR = 2
MIN_FRAMES = 4

FILE_TOTAL_PIXELS = 128_000 * TOKEN * 0.9
LIST_TOTAL_PIXELS = 7_680 * TOKEN
"""Most pixels of a video. The authors' script passes its total for lists of frames only; for files, qwen-vl-utils uses
its default."""

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

    def with_settings(self, settings: Mapping[str, Any]) -> Sizing:
        """A copy with a user's settings, by field.

        Raises BadMedia for limits that no size satisfies, and for settings that the model does not have.
        """
        if not self.max_frames and not settings.keys().isdisjoint(("fps", "max_frames")):
            raise BadMedia("this model reads images and no videos; leave fps and max_frames out")
        if self.tiles is not None and not settings.keys().isdisjoint(("min_pixels", "max_pixels")):
            raise BadMedia(f"{_TILES}; leave min_pixels and max_pixels out")
        tiles = settings.get("tiles")
        if tiles is not None and (self.tiles is None or tiles.side != self.tiles.side):
            has = "no tiles" if self.tiles is None else f"tiles of {self.tiles.side} pixels along a side"
            raise BadMedia(f"this model reads {has}; leave tiles out, or give such tiles")
        names = [one.name for one in fields(Sizing)]
        if unknown := sorted(set(settings) - set(names)):
            raise BadMedia(f"there is no setting {unknown[0]!r}; the settings are {', '.join(names)}")
        sizing = replace(self, **settings)
        sizing.image_bounds(Image(None))
        if sizing.max_frames:
            sizing.video_sampling(Video(None))
        return sizing

    def image_bounds(self, image: Image) -> tuple[int, int]:
        """(min_pixels, max_pixels) for an image. Raises BadMedia for invalid settings of the image."""
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
        # Only the server's settings may exceed the ceiling.
        ceiling = max(CEILING_IMAGE_PIXELS, self.max_pixels)
        if high > ceiling:
            raise BadMedia(f"max_pixels is {high}, over the limit of {ceiling}")
        return low, high

    def video_sampling(self, video: Video) -> tuple[float, int]:
        """(fps, max_frames) for a video. Raises BadMedia for invalid settings, and if the model reads no videos."""
        if not self.max_frames:
            raise BadMedia("this model reads images and no videos; send a frame of it as an image")
        fps = self.fps if video.fps is None else video.fps
        frames = self.max_frames if video.max_frames is None else video.max_frames
        if not (math.isfinite(fps) and fps > 0):
            raise BadMedia(f"fps is {fps}; give a number of frames per second above 0")
        if frames < FRAME_PAIR:
            raise BadMedia(f"max_frames is {frames}; frames are read in pairs, so give 2 or more")
        ceiling = max(CEILING_FRAMES, self.max_frames)
        if frames > ceiling:
            raise BadMedia(f"max_frames is {frames}, over the limit of {ceiling}")
        return fps, frames

    def frame_bounds(self, frames: int, total_pixels: float) -> tuple[int, float]:
        """(min, max) pixels of each frame of a video.

        frames: number of frames
        total_pixels: the limit on all frames, unless the settings have one
        """
        total = total_pixels if self.total_pixels is None else self.total_pixels
        low = self.frame_min_pixels
        return low, max(min(self.frame_max_pixels, total / frames * FRAME_PAIR), int(low * 1.05))


def fit(
    height: int, width: int, factor: int, min_pixels: float, max_pixels: float, least_side: int = 1
) -> tuple[int, int]:
    """(height, width): the size nearest to an image's whose sides are multiples of `factor`, within the pixel bounds.

    A side is never shorter than `factor`. So a long strip may exceed `max_pixels` if that is below 200 tokens.

    least_side: the least length of a side, in multiples of `factor`, when the area is compared with the bounds. In
        qwen-vl-utils this is 1. In `smart_resize` of transformers this is 0: a side below half of `factor` counts as 0,
        so that such a strip is resized by the rule for images below `min_pixels`.

    Source: `smart_resize` of qwen-vl-utils. Raises BadMedia for an image more than 200 times as long as wide, and
    for one without pixels.
    """
    if min(height, width) < 1:
        raise BadMedia(f"{width} x {height} are no pixels; leave the image out")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise BadMedia(f"{width} x {height} is more than {MAX_RATIO} times as long as wide; crop or pad the image")
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
