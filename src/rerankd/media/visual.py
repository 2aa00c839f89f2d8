"""An image or a video for the model: resized pixels, their conversion to patches, and the times of frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rerankd.core import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_IMAGE_CONFIG = "preprocessor_config.json"
_VIDEO_CONFIG = "video_preprocessor_config.json"
_BOTH_CONFIG = "processor_config.json"
_MOST = 4096
"""Upper limit of sizes, means and standard deviations in a configuration."""


@dataclass(frozen=True, slots=True)
class VisionFormat:
    """The form in which a checkpoint's vision tower takes pixels. The defaults are those of Qwen3-VL.

    patch_size: pixels along a patch's side
    temporal_patch_size: frames in a patch
    merge_size: patches along a token's side
    mean, std: of red, green and blue, after multiplication by `rescale`
    bfloat16: whether values are rounded to bfloat16
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255
    bfloat16: bool = False

    @property
    def factor(self) -> int:
        """Pixels along a token's side."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_folder(cls, folder: Path) -> VisionFormat:
        """Read the format from a checkpoint's processor files: one each for images and videos, or one for both (newer).

        Raises ModelError for missing, unreadable or incomplete files, and if the formats of images and videos differ.
        """
        both = _read(folder / _BOTH_CONFIG)
        image = _read(folder / _IMAGE_CONFIG) or _section(both, "image_processor", folder)
        video = _read(folder / _VIDEO_CONFIG) or _section(both, "video_processor", folder)
        if not image:
            raise ModelError(f"{folder} has no {_IMAGE_CONFIG}, the configuration of its image processor")
        form = cls._from_config(image, folder)
        if video and cls._from_config({**image, **video}, folder) != form:
            raise ModelError(f"{folder}: image and video processors that differ are not supported")
        return form

    @classmethod
    def _from_config(cls, config: dict[str, Any], folder: Path) -> VisionFormat:
        def wrong(name: str, rule: str) -> ModelError:
            return ModelError(
                f"the image processor's configuration in {folder} is incomplete: `{name}` must be {rule}, "
                f"not {config.get(name)!r:.60}"
            )

        def size(name: str) -> int:
            value = config.get(name)
            if type(value) is not int or not 1 <= value <= _MOST:
                raise wrong(name, f"an integer from 1 to {_MOST}")
            return value

        def colours(name: str, least: float) -> tuple[float, float, float]:
            value = config.get(name)
            if not isinstance(value, list) or len(value) != 3 or not all(_is_number(number, least) for number in value):
                raise wrong(name, f"three numbers, at least {least}")
            red, green, blue = map(float, value)
            return red, green, blue

        rescale = config.get("rescale_factor", 1 / 255)
        if not _is_number(rescale, 1e-6):
            raise wrong("rescale_factor", "a number more than 0")
        return cls(
            patch_size=size("patch_size"),
            temporal_patch_size=size("temporal_patch_size"),
            merge_size=size("merge_size"),
            mean=colours("image_mean", -10.0),
            std=colours("image_std", 1e-6),
            rescale=float(rescale),
        )

    def lookup(self) -> npt.NDArray[np.float32]:
        """The model's value for each 8-bit sample of red, green and blue, float32 [3, 256].

        The precisions are those of the PIL image processors of transformers: scaling in float64, then (x - mean) / std
        in float32.
        """
        scaled = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        values: npt.NDArray[np.float32] = (scaled[None] - mean[:, None]) / std[:, None]
        return values


@dataclass(frozen=True, slots=True, eq=False)
class ResizedVisual:
    """A resized image or video as 8-bit pixels, which take a quarter to an eighth of the memory of `pixel_values`.

    frames: uint8 [T, H, W, 3]; H and W are multiples of `format.factor`; T of an image is 1, or its number of tiles
    seconds: for a video, the time of each group of `temporal_patch_size` frames in seconds; empty for an image
    digest: equal for equal pixels, whatever their source
    """

    kind: Literal["image", "video"]
    frames: npt.NDArray[np.uint8]
    seconds: tuple[float, ...]
    format: VisionFormat
    digest: bytes

    @classmethod
    def of_image(cls, pixels: npt.NDArray[np.uint8], form: VisionFormat) -> ResizedVisual:
        """A visual from the pixels of one image, uint8 [H, W, 3]."""
        return cls.of_tiles(pixels[None], form)

    @classmethod
    def of_tiles(cls, tiles: npt.NDArray[np.uint8], form: VisionFormat) -> ResizedVisual:
        """A visual from the tiles of one image, uint8 [T, H, W, 3]."""
        return cls("image", tiles, (), form, _digest(tiles))

    @classmethod
    def of_video(cls, frames: npt.NDArray[np.uint8], seconds: tuple[float, ...], form: VisionFormat) -> ResizedVisual:
        """A visual from the frames of a video, uint8 [T, H, W, 3], with a time for each pair of frames."""
        return cls("video", frames, seconds, form, _digest(frames))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of patches in time, height and width."""
        count, height, width, _ = self.frames.shape
        side = self.format.patch_size
        return -(-count // self.format.temporal_patch_size), height // side, width // side

    @property
    def tokens_per_step(self) -> int:
        """Number of placeholder tokens of an image, or of each group of frames of a video."""
        _, height, width = self.grid
        return height * width // self.format.merge_size**2

    @property
    def tokens(self) -> int:
        """Number of placeholder tokens in all."""
        return self.grid[0] * self.tokens_per_step

    def pixel_values(self) -> Tensor:
        """The flattened patches, float32 [t * h * w, 3 * temporal_patch_size * patch_size ** 2].

        Patches are ordered by time, then by token (row by row), then row by row within a token. The values of a patch
        are ordered by channel, frame, row and column. The last frame is repeated to fill the last group of frames.
        Source: `patchify` of `Qwen2VLImageProcessorPil` and `Qwen3VLVideoProcessor` in transformers.
        """
        import torch

        form = self.format
        time, height, width = self.grid
        side, merge, depth = form.patch_size, form.merge_size, form.temporal_patch_size
        missing = time * depth - len(self.frames)
        frames = np.concatenate([self.frames, *[self.frames[-1:]] * missing]) if missing else self.frames
        patches = frames.reshape(time, depth, height // merge, merge, side, width // merge, merge, side, 3)
        patches = patches.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
        values = np.empty(patches.shape, dtype=np.float32)
        for channel, table in enumerate(form.lookup()):
            values[:, :, :, :, :, channel] = table[patches[:, :, :, :, :, channel]]
        pixels = torch.from_numpy(values.reshape(time * height * width, 3 * depth * side * side))
        return pixels.bfloat16().float() if form.bfloat16 else pixels


def _digest(frames: npt.NDArray[np.uint8]) -> bytes:
    state = blake2b(repr(frames.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(frames).data)
    return state.digest()


def _read(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return content


def _section(config: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    value = config.get(name, {})
    if not isinstance(value, dict):
        raise ModelError(f"`{name}` in {folder / _BOTH_CONFIG} must be an object, not {value!r:.60}")
    return value


def _is_number(value: object, least: float) -> bool:
    """Whether a JSON value is a number from `least` to _MOST."""
    return type(value) in (int, float) and least <= value <= _MOST  # type: ignore[operator]
