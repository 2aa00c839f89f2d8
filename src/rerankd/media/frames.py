"""Frames of a video at the size that the model is shown, one at a time, so that no whole video is ever held.

Source: `fetch_video` of qwen-vl-utils 0.0.14.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import PIL.Image

from rerankd.media.images import resize
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
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None].to(torch.float32)
    planes = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", align_corners=False, antialias=True)
    shrunk: Pixels = planes.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()
    return shrunk


def listed(image: PIL.Image.Image, factor: int) -> Pixels:
    """A picture of a list of frames, before `shrink`. Raises as `fit`.

    The reference resizes these twice, first as images with tokens of twice the side: so the same here.
    """
    side = 2 * factor
    return np.array(resize(image, side, _LIST_MIN_TOKENS * side**2, _LIST_MAX_TOKENS * side**2))
