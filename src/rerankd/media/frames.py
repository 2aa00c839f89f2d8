"""Frames of a video at the size that the model is shown, one at a time, so that no whole video is ever held.

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
    """A frame, uint8 [h, w, 3], at [H, W, 3], multiples of `factor` within the pixel bounds. Raises as `fit`.

    As torchvision resizes a stack of frames: bicubic with antialias in float32, then clamped and rounded.
    """
    import torch

    size = fit(frame.shape[0], frame.shape[1], factor, min_pixels, max_pixels)
    if size == frame.shape[:2]:
        return frame
    shrunk = np.empty((*size, 3), dtype=np.uint8)
    # Channel by channel, which gives the same and takes a third of the memory.
    for channel in range(3):
        plane = torch.from_numpy(frame[:, :, channel]).to(torch.float32)[None, None]
        plane = torch.nn.functional.interpolate(plane, size=size, mode="bicubic", align_corners=False, antialias=True)
        shrunk[:, :, channel] = plane[0, 0].clamp_(0, 255).round_().to(torch.uint8).numpy()
    return shrunk


def shrink_memory(height: int, width: int) -> int:
    """Bytes that `shrink` takes at most for a frame of height x width: one channel in float32, before and halfway."""
    return 2 * 4 * height * width


def listed(image: PIL.Image.Image, factor: int) -> Pixels:
    """A picture of a list of frames, before `shrink`. Raises as `fit`.

    The reference resizes these twice, first as images with tokens of twice the side: so the same here.
    """
    side = 2 * factor
    return np.array(resize(image, side, _LIST_MIN_TOKENS * side**2, _LIST_MAX_TOKENS * side**2))


def listed_memory(image: PIL.Image.Image, factor: int) -> int:
    """Bytes that `listed` and a `shrink` of its result take at most. Raises as `fit`."""
    side = 2 * factor
    resized = resize_memory(image, side, _LIST_MIN_TOKENS * side**2, _LIST_MAX_TOKENS * side**2)
    return resized + shrink_memory(image.height + side, image.width + side)
