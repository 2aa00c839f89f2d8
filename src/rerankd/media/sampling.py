"""Which frames of a video are used, and the time of each pair of frames.

Sources: `smart_nframes` of qwen-vl-utils 0.0.14, `sample_frames` of the authors' `qwen3_vl_reranker.py`, and
`Qwen3VLProcessor` of transformers for the timestamps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rerankd.media.sizing import FRAME_PAIR, MIN_FRAMES

LIST_FPS = 2.0
"""Frames per second of a list of frames, whatever `fps` says."""


def file_indices(total: int, rate: float, fps: float, max_frames: int) -> list[int]:
    """Indices of the frames to read from a video file, evenly spaced from the first to the last.

    total, rate: number of frames of the file, and frames per second
    fps: frames to use for each second
    max_frames: limit frames to use

    The number of indices is even, and at least 4 if the file has 4 frames. A file with one frame gives one index.
    """
    import torch

    if total < FRAME_PAIR:
        return [0]
    limit = max_frames // FRAME_PAIR * FRAME_PAIR
    target = min(max(total / rate * fps, MIN_FRAMES), limit, total)
    count = int(target // FRAME_PAIR) * FRAME_PAIR
    # The reference computes in float32 with torch, where halves round to even; other arithmetic gives other frames.
    indices: list[int] = torch.linspace(0, total - 1, count).round().long().tolist()
    return indices


def list_indices(total: int, max_frames: int) -> list[int]:
    """Indices of the frames to use from a list of `total` frames. An odd number of indices is padded with the last."""
    indices = list(range(total))
    if total > max_frames:
        indices = np.linspace(0, total - 1, max_frames, dtype=int).tolist()
    return indices + indices[-1:] * (len(indices) % FRAME_PAIR)


def timestamps(indices: Sequence[int], rate: float) -> tuple[float, ...]:
    """The time of each pair of frames in seconds: the mean of both times, at `rate` frames per second."""
    padded = list(indices)
    padded += padded[-1:] * (len(padded) % FRAME_PAIR)
    return tuple(
        (first / rate + second / rate) / 2
        for first, second in zip(padded[::FRAME_PAIR], padded[1::FRAME_PAIR], strict=True)
    )
