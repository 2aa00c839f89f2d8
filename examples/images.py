"""Rerank images and texts with a vision-language model.

usage: python examples/images.py [MODEL [IMAGE ...]]

MODEL is a folder or an id on the hub, by default Qwen/Qwen3-VL-Reranker-2B. Without an IMAGE two are drawn.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw

from rerankd import Reranker

QUERY = "a red circle"
TEXTS = ["A red disc on white paper.", "The train leaves at noon."]


def drawn(colour: str) -> Image.Image:
    """A circle of 128 pixels on white."""
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((64, 64, 192, 192), fill=colour)
    return image


def main(model: str, *paths: str) -> None:
    # An image is a path, a URL or a PIL image.
    images = {path: path for path in paths} or {f"a drawn {colour} circle": drawn(colour) for colour in ("red", "blue")}
    documents = [*TEXTS, *({"image": image} for image in images.values())]
    # A document may hold both.
    documents.append({"text": TEXTS[0], "image": next(iter(images.values()))})
    names = [*TEXTS, *images, f"{next(iter(images))}, and: {TEXTS[0]}"]
    with Reranker(model) as reranker:
        for document in reranker.rerank(QUERY, documents):
            print(f"{document.score:.4f}  {names[document.index]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="Qwen/Qwen3-VL-Reranker-2B", help="a folder, or an id on the hub")
    parser.add_argument("images", nargs="*", metavar="image", help="a path or a URL; without one two are drawn")
    given = parser.parse_args()
    main(given.model, *given.images)
