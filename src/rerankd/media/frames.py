"""Resizing of the frames of a video, one at a time, so that a whole decoded video is never in memory.

Source: `fetch_video` of qwen-vl-utils 0.0.14.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import PIL.Image

from rerankd.media.images import resize, resize_memory
from rerankd.media.sizing import fit

Pixels = npt.NDArray[np.uint8]

_LIST_MIN_TOKENS = 4
_LIST_MAX_TOKENS = 16_384


def shrink(frame: Pixels, factor: int, min_pixels: float, max_pixels: float) -> Pixels:
    """Resize a frame to the size that `fit` gives: uint8 [h, w, 3] -> uint8 [H, W, 3]. Raises as `fit`.

    The arithmetic is that of torchvision for a stack of frames: bicubic with antialias in float32, clamped, rounded.
    """
    import torch

    size = fit(frame.shape[0], frame.shape[1], factor, min_pixels, max_pixels)
    if size == frame.shape[:2]:
        return frame
    shrunk = np.empty((*size, 3), dtype=np.uint8)
    # Channel by channel: the result is the same, and takes a third of the memory.
    for channel in range(3):
        plane = torch.from_numpy(frame[:, :, channel]).to(torch.float32)[None, None]
        plane = torch.nn.functional.interpolate(plane, size=size, mode="bicubic", align_corners=False, antialias=True)
        shrunk[:, :, channel] = plane[0, 0].clamp_(0, 255).round_().to(torch.uint8).numpy()
    return shrunk


def shrink_memory(height: int, width: int) -> int:
    """Most bytes that `shrink` needs for a frame: one channel in float32, before and after the first of two passes."""
    return 2 * 4 * height * width


def resize_listed(image: PIL.Image.Image, factor: int) -> Pixels:
    """The first resizing of a frame that comes from a list of images: uint8 [H, W, 3]. Raises as `fit`.

    The reference resizes such frames twice: first as images whose tokens have twice the side, then as frames
    (`shrink`). The result depends on both.
    """
    side = 2 * factor
    return np.array(resize(image, side, _LIST_MIN_TOKENS * side**2, _LIST_MAX_TOKENS * side**2))


def listed_memory(image: PIL.Image.Image, factor: int) -> int:
    """Most bytes that `resize_listed` and a `shrink` of its result need. Raises as `fit`."""
    side = 2 * factor
    resized = resize_memory(image, side, _LIST_MIN_TOKENS * side**2, _LIST_MAX_TOKENS * side**2)
    return resized + shrink_memory(image.height + side, image.width + side)
