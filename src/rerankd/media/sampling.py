"""The frames of a video that are read, and the time of each pair.

Sources: `smart_nframes` of qwen-vl-utils 0.0.14, `sample_frames` of the authors' `qwen3_vl_reranker.py`, and
`Qwen3VLProcessor` of transformers for the timestamps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rerankd.media.sizing import FRAME_PAIR, MIN_FRAMES

LIST_FPS = 2.0
"""A list of frames counts as two a second, whatever `fps` says."""


def file_indices(total: int, rate: float, fps: float, max_frames: int) -> list[int]:
    """Indices of the frames to read of a file of `total` frames at `rate` a second, first and last included.

    An even number of them, at least 4, where the file has as many; a single frame stands alone.
    """
    import torch

    if total < FRAME_PAIR:
        return [0]
    most = max_frames // FRAME_PAIR * FRAME_PAIR
    wanted = min(max(total / rate * fps, MIN_FRAMES), most, total)
    count = int(wanted // FRAME_PAIR) * FRAME_PAIR
    # The reference spaces them in float32, and halves round to even in it: so must these.
    spaced: list[int] = torch.linspace(0, total - 1, count).round().long().tolist()
    return spaced


def list_indices(total: int, max_frames: int) -> list[int]:
    """Indices of the frames to use of a list of `total`; an odd count gets its last one twice."""
    chosen = list(range(total))
    if total > max_frames:
        chosen = np.linspace(0, total - 1, max_frames, dtype=int).tolist()
    return chosen + chosen[-1:] * (len(chosen) % FRAME_PAIR)


def timestamps(indices: Sequence[int], rate: float) -> tuple[float, ...]:
    """Seconds for each pair of frames: the mean of both, by their index at `rate` frames a second."""
    padded = list(indices)
    padded += padded[-1:] * (len(padded) % FRAME_PAIR)
    return tuple(
        (first / rate + second / rate) / 2
        for first, second in zip(padded[::FRAME_PAIR], padded[1::FRAME_PAIR], strict=True)
    )
