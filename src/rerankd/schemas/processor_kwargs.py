"""vLLM's `mm_processor_kwargs`, of a request and of a server: how large images and videos are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import Field

from rerankd.core import Content, Image, Part, Video
from rerankd.schemas.contents import Open


class Size(Open):
    """transformers' own words for an image's least and most pixels."""

    shortest_edge: int | None = Field(default=None, gt=0)
    longest_edge: int | None = Field(default=None, gt=0)


class ProcessorKwargs(Open):
    """Pixels of images, frames of videos; None for what is left open."""

    min_pixels: int | None = Field(default=None, gt=0)
    max_pixels: int | None = Field(default=None, gt=0)
    size: Size | None = None
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_frames: int | None = Field(default=None, gt=0)

    def values(self) -> dict[str, Any]:
        """The given values of min_pixels, max_pixels, fps and max_frames, under these names."""
        size = self.size or Size()
        values = {
            "min_pixels": size.shortest_edge if self.min_pixels is None else self.min_pixels,
            "max_pixels": size.longest_edge if self.max_pixels is None else self.max_pixels,
            "fps": self.fps,
            "max_frames": self.max_frames,
        }
        return {name: value for name, value in values.items() if value is not None}

    def fill(self, content: Content) -> Content:
        """The content, with these values for images and videos that have none of their own."""
        values = self.values()

        def filled(part: Part) -> Part:
            names = {Image: ("min_pixels", "max_pixels"), Video: ("fps", "max_frames")}.get(type(part), ())
            return replace(
                part, **{name: values[name] for name in names if name in values and getattr(part, name) is None}
            )

        return tuple(map(filled, content))

    def without_effect(self) -> Iterator[str]:
        """The names of fields without effect."""
        yield from self.unknown()
        if self.size:
            yield from (f"size.{name}" for name in self.size.unknown())
