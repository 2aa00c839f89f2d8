"""Pictures by integer arithmetic alone: the same bytes on every machine and in every version of every library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def pattern(width: int, height: int, seed: int = 0, channels: int = 3) -> Pixels:
    """uint8 [height, width, channels]: slopes, stripes and specks, so that resizing has something to get wrong."""
    y, x = np.arange(height, dtype=np.int32)[:, None], np.arange(width, dtype=np.int32)
    planes = []
    for channel in range(channels):
        slope = (x * (3 + channel) + y * (5 - channel)) // 4 + seed * 17
        checks = ((x // 9 + y // 7 + channel + seed) & 1) * 90
        specks = ((x * 7919 + y * 104729 + channel * 31 + seed * 1299709) % 97 == 0) * 120
        planes.append((slope + checks + specks).astype(np.uint8))
    return np.stack(planes, axis=-1)


def scene(width: int, height: int, time: int) -> Pixels:
    """uint8 [height, width, 3]: one frame of a smooth, moving, well-compressible film."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = 128 + (x * 100 // width) - (time * 3) % 60
    green = 60 + (y * 150 // height)
    ball = (x - (time * 5) % width) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2
    blue = np.where(ball, 220, 40)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
