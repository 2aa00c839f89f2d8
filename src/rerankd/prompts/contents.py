"""From a request's contents to the texts that a text model reads."""

from __future__ import annotations

from rerankd import work
from rerankd.core import Content, Image, InvalidRequest, Text
from rerankd.prompts.tokenizer import well_formed


def read_text(content: Content, field: str) -> str:
    """The text of a content: its parts one after the other with nothing between, as Qwen's own code joins them.

    Raises InvalidRequest, naming `field`, for an image or a video.
    """
    for part in content:
        if not isinstance(part, Text):
            kind = "an image" if isinstance(part, Image) else "a video"
            work.refuse(
                InvalidRequest(
                    field,
                    f"holds {kind}, and this model reads text only; serve a Qwen3-VL-Reranker to score images and "
                    "videos",
                )
            )
    return well_formed("".join(part.text for part in content if isinstance(part, Text)))
