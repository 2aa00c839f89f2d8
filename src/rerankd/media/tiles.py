"""A picture as square tiles of one size, for a vision tower that takes no other.

Source: `dynamic_preprocess` of `processing_llama_nemotron_vl.py` in nvidia/llama-nemotron-rerank-vl-1b-v2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import PIL.Image

_ENOUGH = 0.6
"""The share of a picture's pixels that tiles should have; more of them count no more."""
_COPIES = 4
"""Pixels of tiles that are held at a time: as a picture and as arrays, each at most as large as one of RGB."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """side: pixels along a tile's side; most: how many tiles a picture is cut into at most.

    whole: whether all of a picture is one more tile where it is cut into several
    """

    side: int
    most: int
    whole: bool = True

    @property
    def pixels(self) -> int:
        """Of all tiles of a picture at most."""
        return (self.most + self.whole) * self.side**2

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """How many tiles lie side by side and how many one above another: those that fit the picture best."""
        # The order of a set decides between shapes that fit equally well, so that it is made as the authors make it.
        shapes = {
            (columns, rows)
            for count in range(1, self.most + 1)
            for columns in range(1, count + 1)
            for rows in range(1, count + 1)
            if columns * rows <= self.most
        }

        def fit(shape: tuple[int, int]) -> float:
            columns, rows = shape
            own, asked = columns / rows, width / height
            share = columns * rows * self.side * self.side / (width * height)
            return min(share, _ENOUGH) * min(own / asked, asked / own)

        return max(sorted(shapes, key=lambda shape: shape[0] * shape[1]), key=fit)

    def cut(self, image: PIL.Image.Image) -> npt.NDArray[np.uint8]:
        """The tiles of a picture of RGB, row by row, and behind them the one that shows all of it.

        Returns uint8 [tiles, side, side, 3].
        """
        import numpy as np

        columns, rows = self.shape(*image.size)
        side = self.side
        # Resized as Pillow does where nothing is said, and so as the authors do: bicubic.
        resized = np.array(image.resize((columns * side, rows * side)))
        tiles: npt.NDArray[np.uint8] = (
            resized.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
        )
        if len(tiles) == 1 or not self.whole:
            return tiles
        return np.concatenate([tiles, np.array(image.resize((side, side)))[None]])

    def memory(self, image: PIL.Image.Image) -> int:
        """Bytes that `cut` takes at most, its result included."""
        columns, rows = self.shape(*image.size)
        halfway = self.side * max(columns * image.height, rows * image.width)
        return _COPIES * (halfway + 2 * (columns * rows + 1) * self.side**2)
