"""Queries and documents of texts, pictures and videos, for the tests and for the script that asks the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import PIL.Image

from tests.media.films import MOV, film
from tests.media.golden.cases import FILES, FOLDER, LISTS, frames
from tests.media.patterns import Pixels, pattern


@dataclass(frozen=True, eq=False)
class Film:
    """A video: a path or a list of frames, and how it is read.

    shown: the frames that the model is shown, where they are of a size that is shown as it is; how frames are
        resized is what the golden files of single videos test
    """

    source: str | list[PIL.Image.Image]
    shown: Sequence[Pixels] = ()
    fps: float | None = None
    max_frames: int | None = None


Piece: TypeAlias = str | PIL.Image.Image | Film
Pair: TypeAlias = tuple[list[Piece], list[Piece]]


def picture(width: int, height: int, seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(pattern(width, height, seed))


def frame_list(count: int, seed: int = 0) -> Film:
    """A list of frames. qwen-vl-utils repeats the last one of an odd number."""
    listed = [pattern(448, 320, seed + i) for i in range(count)]
    return Film([PIL.Image.fromarray(frame) for frame in listed], listed + listed[-1:] * (count % 2))


def film_file(folder: Path) -> Film:
    """A lossless file of 9 frames at 2 a second: 4.5 seconds, and so 4 frames, evenly spaced from first to last."""
    written = [pattern(320, 448, 50 + i) for i in range(9)]
    path = folder / "film.mov"
    path.write_bytes(film(MOV, written, rate=2, crf="0"))
    return Film(str(path), [written[i] for i in (0, 3, 5, 8)])


def golden_file(name: str) -> Film:
    """One of the golden files, read as its own golden values are."""
    most = FILES[name].get("max_frames")
    return Film(str(FOLDER / name), fps=FILES[name].get("fps"), max_frames=None if most is None else int(most))


SQUARE, WIDE, TALL = picture(96, 96, 1), picture(333, 97, 2), picture(70, 410, 3)
TINY, LARGE = picture(10, 10, 4), picture(4000, 3000, 5)
FRAMES = frame_list(3)

QUERIES: dict[str, list[Piece]] = {
    "text": ["a dog at the beach"],
    "image": [SQUARE],
    "text and image": ["find what looks like this: ", WIDE],
    "image and text": [TALL, " from another side", SQUARE],
    "video": [frame_list(4, 20)],
    "nothing": [],
}


def pairs(folder: Path) -> dict[str, Pair]:
    """The pairs by name, those of a query one after the other. `folder` is where a video file may be written."""
    file = film_file(folder)
    documents: dict[str, list[Piece]] = {
        "text": ["A golden retriever runs along the water."],
        "nothing": [],
        "image": [WIDE],
        "the query's image": [SQUARE],
        "images": [SQUARE, TALL, SQUARE],
        "text before": ["Look: ", TALL],
        "text between": [WIDE, " and then ", TINY],
        "text after": [TALL, " is what I saw.\n"],
        "text around": ["x", WIDE, "y"],
        "tiny": [TINY],
        "frames": [FRAMES],
        "file and text": [file, "the film"],
        "video and image": [frame_list(2, 7), WIDE, "both"],
        "image between videos": ["first ", file, "\n", TINY, FRAMES, "last"],
    }
    only: dict[str, dict[str, list[Piece]]] = {
        "text": {"large": [LARGE], "frames, image and text": [FRAMES, TINY, "z"]}
        | {f"file {name}": ["the film ", golden_file(name)] for name in FILES}
        | {f"list {name}": [Film(frames(name))] for name in LISTS}
        | {"list over the total": [Film([picture(640, 480, seed) for seed in range(64)])]},
        "image": {"large": ["large: ", LARGE]},
        "image and text": {"frames, image and text": [FRAMES, TINY, "z"]},
        "nothing": {},
    }
    few = ("text", "frames", "video and image")
    return {
        f"{asked} | {name}": (query, document)
        for asked, query in QUERIES.items()
        for name, document in (documents | only.get(asked, {})).items()
        if asked not in ("video", "nothing") or name in few
    }
