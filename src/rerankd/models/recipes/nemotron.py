"""llama-nemotron-rerank-1b-v2 and llama-3.2-nv-rerankqa-1b-v2: a question and a passage in one text. Before it
llama-nemotron-rerank-vl-1b-v2 may have an image.

Sources: `prompt_template` on the models' cards by nvidia, vLLM's template, and `processing_llama_nemotron_vl.py` with
the tiles that the last one's card asks for. Their tokenizer puts `BEGIN` before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.media.sizing import Sizing
from rerankd.media.tiles import Tiles
from rerankd.models.recipes.recipe import Recipe
from rerankd.models.recipes.template import Marks

BEGIN = "<|begin_of_text|>"
MARKS = Marks("<img>", "</img>", "<IMG_CONTEXT>", None)


@dataclass(frozen=True, slots=True)
class NemotronTemplate:
    """The spaces around the newlines are the authors'."""

    takes_instruction: bool = False
    verbatim: bool = True
    default_instruction: None = None
    empty: str = ""

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        return f"{BEGIN}question:{query} \n \n passage:{document}"


NEMOTRON_RERANK = Recipe("nemotron-rerank", family="cross-encoder", template=NemotronTemplate())
"""A classifier over a text that a template writes. The class in config.json belongs to this model alone."""


@dataclass(frozen=True, slots=True)
class NemotronVLTemplate(NemotronTemplate):
    """The image, which stands first in a document, moves to the front of the prompt."""

    verbatim: bool = False

    def render(self, instruction: str | None, query: str, document: str) -> str:
        """See `Template.render`."""
        image, mark, text = document.rpartition(MARKS.end)
        pair = f"question:{query} \n \n passage:{text}"
        return f"{BEGIN}{image}{mark} {pair}" if image else f"{BEGIN}{pair}"


NEMOTRON_RERANK_VL = Recipe(
    "nemotron-rerank-vl",
    family="cross-encoder",
    template=NemotronVLTemplate(),
    processor=True,
    supports_vision=True,
    images="first",
    marks=MARKS,
    sizing=Sizing(max_frames=0, tiles=Tiles(side=512, most=6)),
)
"""For documents of a text, an image or both. A folder's processor may set another number of tiles."""
