"""Cutting of an image into square tiles of one size, for a vision tower that accepts no other size.

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
"""Ratio of the tiles' pixels to the image's, above which a larger ratio is no better."""
_PIXEL_BYTES = 4
"""Bytes for each pixel: Pillow takes four bytes for a pixel of RGB, and an array takes less."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How an image is cut into tiles.

    side: pixels along a tile's side
    most: most tiles of an image
    whole: whether an image of several tiles gets one more tile that shows the whole image
    """

    side: int
    most: int
    whole: bool = True

    @property
    def pixels(self) -> int:
        """Most pixels of all tiles of an image."""
        return (self.most + self.whole) * self.side**2

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows): the arrangement of tiles that fits an image of width x height pixels best."""
        # If two shapes fit equally well, the order of this set decides. So the set is built as the authors build it.
        shapes = {
            (columns, rows)
            for count in range(1, self.most + 1)
            for columns in range(1, count + 1)
            for rows in range(1, count + 1)
            if columns * rows <= self.most
        }

        def fit(shape: tuple[int, int]) -> float:
            columns, rows = shape
            ratio, image_ratio = columns / rows, width / height
            share = columns * rows * self.side * self.side / (width * height)
            return min(share, _ENOUGH) * min(ratio / image_ratio, image_ratio / ratio)

        return max(sorted(shapes, key=lambda shape: shape[0] * shape[1]), key=fit)

    def cut(self, image: PIL.Image.Image) -> npt.NDArray[np.uint8]:
        """Cut an RGB image into tiles, row by row, and append the tile that shows the whole image if there is one.

        Returns uint8 [tiles, side, side, 3].
        """
        import numpy as np

        columns, rows = self.shape(*image.size)
        side = self.side
        # The authors give no resampling filter, so this is Pillow's default: bicubic.
        resized = np.array(image.resize((columns * side, rows * side)))
        tiles: npt.NDArray[np.uint8] = (
            resized.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
        )
        if len(tiles) == 1 or not self.whole:
            return tiles
        return np.concatenate([tiles, np.array(image.resize((side, side)))[None]])

    def memory(self, image: PIL.Image.Image) -> int:
        """Most bytes that `cut` needs, including its result."""
        columns, rows = self.shape(*image.size)
        halfway = self.side * max(columns * image.height, rows * image.width)
        return _PIXEL_BYTES * (halfway + 2 * (columns * rows + 1) * self.side**2)
